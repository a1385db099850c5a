from __future__ import annotations

import ast
import sys

import pytest

from compresskit.calibrate import harvest
from compresskit.errors import DataError


def test_text_of_each_kind_is_prose() -> None:
    for pool in (harvest.documentation("heldout"), harvest.docstrings("heldout")):
        assert len(pool) > 100
        for text in pool:
            assert harvest.SHORTEST <= len(text) <= harvest.LONGEST + 1
            assert ">>>" not in text
            assert "\n" not in text


def test_messages_are_what_is_raised_warned_and_explained() -> None:
    source = """
raise ValueError("the first message is this")
warnings.warn("the second message is that")
parser.add_argument("--x", help="the third message says %(prog)s")
print("not a message at all, only printed")
"""
    found = [text for node in ast.walk(ast.parse(source)) for text in harvest._spoken(node)]
    assert sorted(found) == [
        "the first message is this",
        "the second message is that",
        "the third message says value",
    ]


def test_nothing_of_the_modules_is_imported() -> None:
    harvest._texts.cache_clear()
    before = set(sys.modules)
    harvest._texts("nntplib")
    harvest._texts("imaplib")
    assert set(sys.modules) == before


def test_a_python_without_sources_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    harvest._texts.cache_clear()
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": "/nowhere"})
    with pytest.raises(DataError) as caught:
        harvest._texts("abc")
    assert caught.value.code == "CK-D010"
    assert caught.value.where == "/nowhere"


def test_a_module_of_another_python_version_gives_nothing() -> None:
    assert harvest._texts("no_such_module") == ((), ())


def test_a_python_without_its_documentation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    harvest.documentation.cache_clear()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError) as caught:
        harvest.documentation("heldout")
    assert caught.value.code == "CK-D010"
    harvest.documentation.cache_clear()
