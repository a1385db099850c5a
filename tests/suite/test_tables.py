"""The tables of benchmarks/README.md are those that the committed summaries give."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from compresskit.suite.summary import FORMAT
from tests.suite.test_summary import content, row


@pytest.fixture(scope="module")
def tables(project_root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", project_root / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(tables: ModuleType) -> None:
    assert tables.main(["--check"]) == 0


def test_tables_are_replaced_between_their_marks(tables: ModuleType, tmp_path: Path) -> None:
    summary = {"schema": FORMAT, **content([row("fp32", "baseline"), row("int8")])}
    (tmp_path / "small.json").write_text(json.dumps(summary))
    page = "before\n<!-- table: small -->\nold\n<!-- end -->\nafter\n"
    new = tables.written(page, tmp_path)
    assert new.startswith("before\n<!-- table: small -->\n2026-11-23")
    assert new.endswith("<!-- end -->\nafter\n")
    assert "| int8 | 23.40 |" in new
    assert "old" not in new
    assert tables.written(new, tmp_path) == new


def test_a_table_without_its_summary_is_an_error(tables: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"none\.json"):
        tables.written("<!-- table: none -->\n<!-- end -->\n", tmp_path)
    (tmp_path / "none.json").write_text('{"schema": "other"}')
    with pytest.raises(SystemExit, match="no summary"):
        tables.written("<!-- table: none -->\n<!-- end -->\n", tmp_path)
