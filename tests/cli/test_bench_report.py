"""``bench report``: the files that it writes, what it refuses, what reaches the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compresskit.bench.record import write
from compresskit.cli.main import main
from tests.report.records import record


@pytest.fixture
def given(tmp_path: Path) -> Path:
    write(record(blocks=4), tmp_path / "out.json")
    return tmp_path / "out.json"


def test_page_markdown_and_csv(given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "deep" / "report.html"
    assert main(["bench", "report", str(given), "-o", str(page), "--md", "--csv", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["page"] == str(page)
    assert found["records"] == 1
    assert found["bytes"] == page.stat().st_size
    assert "int8 is faster" in page.read_text(encoding="utf-8")
    assert "| int8 | torch |" in page.with_suffix(".md").read_text(encoding="utf-8")
    assert page.with_suffix(".csv").read_text(encoding="utf-8").startswith("record,arm,")
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.csv", "report.html", "report.md"]


def test_only_what_is_asked_for(given: Path, tmp_path: Path) -> None:
    assert main(["bench", "report", str(given), "-o", str(tmp_path / "page.html")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "page.html"]


def test_several_records_and_the_same_twice(given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(record(blocks=4, seed=8), tmp_path / "other" / "out.json")
    words = [str(given), str(given), str(tmp_path / "other" / "out.json")]
    assert main(["bench", "report", *words, "-o", str(tmp_path / "page.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == 2
    assert "other/out.json" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("output", "options"),
    [("out.json", []), ("out.html", ["--csv"]), ("x.csv", ["--csv"]), ("x.md", ["--md", "--csv"])],
)
def test_a_record_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str, options: list[str]
) -> None:
    written = tmp_path / ("out.csv" if output == "out.html" else "out.json")
    write(record(blocks=2), written)
    before = written.read_bytes()
    assert main(["bench", "report", str(written), "-o", str(tmp_path / output), *options]) == 2
    assert "CK-B040" in capsys.readouterr().err
    assert written.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [written.name]


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"schema": "compresskit.bench/2.0"}', '{"schema": "compresskit.bench/1.0"}']
)
def test_what_is_no_record_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (tmp_path / "\x1b[31ma.json").write_text(content)
    assert main(["bench", "report", str(tmp_path / "\x1b[31ma.json"), "-o", str(tmp_path / "page.html")]) == 3
    error = capsys.readouterr().err
    assert "CK-B010" in error
    assert "\x1b" not in error
    assert not (tmp_path / "page.html").exists()


def test_a_newer_minor_version_is_read(given: Path, tmp_path: Path) -> None:
    content = json.loads(given.read_text()) | {"schema": "compresskit.bench/1.9", "new": 1}
    content["arms"][0]["new"] = {"deep": [1]}
    given.write_text(json.dumps(content))
    assert main(["bench", "report", str(given), "-o", str(tmp_path / "page.html")]) == 0
