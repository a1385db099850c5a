"""Summaries of suites: a table of points before the records that lie beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compresskit.bench.record import write
from compresskit.errors import DataError, SecurityError
from compresskit.report.bench_page import bench_page
from compresskit.report.given import read_given
from compresskit.report.suite import Summary, suite_part
from tests.report.pages import Page, hostile
from tests.report.records import CELL, HOSTILE, record

SCORE = {
    "metric": "spearman",
    "value": 81.7,
    "unit": "points",
    "ci": [80.6, 82.7],
    "difference": -0.33,
    "difference_ci": [-0.6, -0.1],
    "live": 81.71,
}


def summary() -> dict[str, Any]:
    row = {
        "model": "minilm",
        "name": "int8 (onnxruntime)",
        "point": "int8",
        "engine": "onnxruntime",
        "role": "candidate",
        "size_bytes": 23_400_000,
        "cosine": {"everyday": {"mean": 0.9951, "min": 0.981}},
        "quality": {"sts": SCORE},
        "latency": {CELL: {"p50_ms": 5.9, "ratio": 0.244, "ci": [0.23, 0.26], "verdict": "FASTER"}},
        "error": None,
    }
    return {
        "schema": "compresskit.suite/1.0",
        "name": "minilm-cpu",
        "created": "2026-11-22T11:00:00+00:00",
        "command": "compresskit bench suite minilm-cpu.yaml -o results",
        "environment": {"cpu": "Xeon 8481C", "git_commit": "0123456789abcdef"},
        "noise": {"fit": "good"},
        "rows": [row | {"role": "baseline", "name": "fp32", "latency": {CELL: {"p50_ms": 24.0}}}, row],
        "skipped": [{"what": "nncf", "why": "not installed"}],
        "failed": [{"what": "svd", "why": "no memory", "code": "CK-T001"}],
        "records": ["minilm--all.json"],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(record(blocks=2), tmp_path / "records" / "minilm--all.json")
    (tmp_path / "minilm-cpu.json").write_text(json.dumps(summary()))
    return tmp_path


def test_points_stand_before_the_records(folder: Path) -> None:
    given = read_given([folder / "minilm-cpu.json"])
    assert [name for name, _ in given.records] == ["minilm--all.json"]
    page = bench_page(given.records, given.suites)
    order = [
        ">Suite minilm-cpu<",
        "nncf was skipped: not installed",
        ">All points<",
        ">Quality of the points<",
        ">Result<",
    ]
    places = [page.index(each) for each in order]
    assert places == sorted(places)
    text = " ".join(Page(page).text)
    for figure in (
        "0.244 [0.230, 0.260]",
        "-0.330 [-0.600, -0.100]",
        "0.9951 (0.9810)",
        "81.71",
        "commit 0123456789ab",
    ):
        assert figure in text, figure


def test_a_record_named_twice_is_read_once(folder: Path) -> None:
    given = read_given([folder / "records" / "minilm--all.json", folder / "minilm-cpu.json"])
    assert len(given.records) == 1


def test_a_summary_without_records_is_a_page(folder: Path) -> None:
    page = bench_page([], [Summary("a.json", summary())])
    assert ">All points<" in page


@pytest.mark.parametrize("name", ["../secret.json", "/etc/passwd", "a\\b", "", None, 3])
def test_records_elsewhere_are_not_opened(folder: Path, name: Any) -> None:
    (folder / "evil.json").write_text(json.dumps(summary() | {"records": [name]}))
    with pytest.raises(SecurityError) as caught:
        read_given([folder / "evil.json"])
    assert caught.value.code == "CK-S003"


@pytest.mark.parametrize("names", [None, "x", {"a": 1}, ["r"] * 1000, ["absent.json"]])
def test_a_summary_without_its_records_is_refused(folder: Path, names: Any) -> None:
    (folder / "odd.json").write_text(json.dumps(summary() | {"records": names}))
    with pytest.raises(DataError):
        read_given([folder / "odd.json"])


def test_another_major_version_is_refused(folder: Path) -> None:
    (folder / "odd.json").write_text(json.dumps(summary() | {"schema": "compresskit.suite/2.0"}))
    with pytest.raises(DataError):
        read_given([folder / "odd.json"])


def test_foreign_text_stays_text() -> None:
    plain, evil = (
        Page(bench_page([], [Summary("a", hostile(summary(), word))])) for word in ("x" * len(HOSTILE), HOSTILE)
    )
    assert plain.tags == evil.tags
    assert [name for name, _ in plain.attributes] == [name for name, _ in evil.attributes]


@pytest.mark.parametrize(
    "odd", [None, 1e308, "x", [], [1], {"a": {"b": []}}, [{"latency": 3, "quality": [], "cosine": "x"}]]
)
@pytest.mark.parametrize("key", ["rows", "environment", "noise", "skipped", "failed", "name", "created", "command"])
def test_wrong_types_do_no_harm(key: str, odd: Any) -> None:
    part = suite_part(Summary("a", summary() | {key: odd}))
    assert part.title.startswith("Suite ")
    assert "</html>" in bench_page([], [Summary("a", summary() | {key: odd})])
