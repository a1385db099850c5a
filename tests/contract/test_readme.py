"""README's tables say what the registry and the conformance suite say."""

from __future__ import annotations

from tests.contract.matrix import BLOCK, README, render


def test_tables_are_current() -> None:
    text = README.read_text(encoding="utf-8")
    assert {match["name"] for match in BLOCK.finditer(text)} == {"methods", "matrix"}
    assert render(text) == text, "run `python -m tests.contract.matrix`"
