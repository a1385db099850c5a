from __future__ import annotations

from pathlib import Path

import pytest

from compresskit.errors import UsageError
from compresskit.suite.cells import Cell, Cells, key_of


def test_a_finished_cell_is_found_again(tmp_path: Path) -> None:
    Cells(tmp_path, resume=False).keep("model--int8", Cell("abc", {"size": 3}))
    assert Cells(tmp_path, resume=True).find("model--int8", "abc") == Cell("abc", {"size": 3})
    assert Cells(tmp_path, resume=True).find("model--int8", "other") is None
    assert Cells(tmp_path, resume=True).find("model--int4", "abc") is None
    assert Cells(tmp_path, resume=False).find("model--int8", "abc") is None


def test_a_failed_cell_is_tried_again(tmp_path: Path) -> None:
    Cells(tmp_path, resume=False).failed("a", "abc", UsageError("CK-U040", "no"))
    assert '"CK-U040"' in (tmp_path / "a.json").read_text()
    assert Cells(tmp_path, resume=True).find("a", "abc") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "other/1.0", "key": "abc", "content": {}}', "null"])
def test_a_damaged_cell_is_made_again(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert Cells(tmp_path, resume=True).find("a", "abc") is None


def test_a_key_depends_on_every_part() -> None:
    assert key_of({"a": 1, "b": 2}, "x") == key_of({"b": 2, "a": 1}, "x")
    assert len({key_of("a"), key_of("a", "b"), key_of(["a", "b"]), key_of({"a": "b"})}) == 4
