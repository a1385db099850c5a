"""The order of a suite, with making and measuring replaced; and one small suite for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compresskit.errors import DataError, InterruptedRun, ModelError
from compresskit.suite import run as module
from compresskit.suite.points import Point
from compresskit.suite.run import run_suite
from compresskit.suite.schema import Suite, load
from compresskit.suite.summary import Row
from tests import models

TEXT = """version: 1
name: small
models: {{tiny: "{model}"}}
recipes:
  int8: {{steps: [{{quantization.int8: {{activations: token}}}}]}}
  table: {{steps: [{{quantization.embedding: {{bits: 8}}}}]}}
engines: [onnxruntime]
baseline: onnxruntime
measure: {measure}
profile: {{replicates: 1, seconds: 0.1, slice_seconds: 0.003, least_blocks: 4, most_blocks: 4, limit: 20}}
lengths: [16]
tasks: [{{task: sts, data: pairs.tsv}}]
"""
PAIRS = "score\tsentence1\tsentence2\n5\tthe cat\ta cat\n1\tgood film\tthe dog\n3\tbad book\ta book\n2\tgood\tdog\n"


def suite(folder: Path, measure: str = "each") -> Suite:
    model = folder / "source"
    if not model.exists():
        models.write_checkpoint(models.tiny("bert"), model)
    (folder / "pairs.tsv").write_text(PAIRS)
    path = folder / "small.yaml"
    path.write_text(TEXT.format(model=model, measure=measure))
    return load(path)


class Steps:
    """Counts what would be made and measured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.measured: list[list[str]] = []
        self.broken: set[str] = set()
        base = {"torch": "torch=x", "onnxruntime": "onnxruntime=y"}
        monkeypatch.setattr(module, "make_baseline", lambda *_, **__: base)
        monkeypatch.setattr(module, "make_point", self.make)
        monkeypatch.setattr(module, "measure", self.measure)
        monkeypatch.setattr(module, "rows_of", self.rows)

    def make(self, name: str, recipe: Any, source: Any, folder: Path, *_: Any, **__: Any) -> Point:
        if name in self.broken:
            raise ModelError("CK-M031", "it can't be done")
        self.made.append(name)
        folder.mkdir(parents=True, exist_ok=True)
        return Point(
            name, {"onnxruntime": f"onnxruntime={folder}/model.onnx"}, {"sts": 1.0}, {"after": {"parameters": 5}}
        )

    def measure(self, entries: Any, suite: Suite, source: Any, path: Path, **_: Any) -> dict[str, Any]:
        self.measured.append([entry.name for entry in entries])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        return {"record": path.name, "fidelity": {}, "further": {}}

    @staticmethod
    def rows(model: str, path: Path, entries: Any, points: Any, content: Any) -> list[Row]:
        return [Row(model, entry.name, entry.point, entry.engine, "candidate") for entry in entries]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    monkeypatch.setattr("compresskit.suite.summary.read", lambda path: None)
    return Steps(monkeypatch)


def test_every_recipe_is_measured_beside_the_source(tmp_path: Path, steps: Steps) -> None:
    found = run_suite(suite(tmp_path), tmp_path / "out")
    assert steps.made == ["int8", "table"]
    base = ["fp32, onnxruntime", "fp32, torch"]
    assert steps.measured == [[*base, "int8, onnxruntime"], [*base, "table, onnxruntime"]]
    assert found["failed"] == []
    assert json.loads((tmp_path / "out" / "small.json").read_text()) == found
    assert (tmp_path / "out" / "small.md").is_file()


def test_together_is_one_run(tmp_path: Path, steps: Steps) -> None:
    run_suite(suite(tmp_path, "together"), tmp_path / "out")
    assert steps.measured == [["fp32, onnxruntime", "fp32, torch", "int8, onnxruntime", "table, onnxruntime"]]


def test_a_resumed_suite_makes_nothing_twice(tmp_path: Path, steps: Steps) -> None:
    run_suite(suite(tmp_path), tmp_path / "out")
    steps.made.clear()
    steps.measured.clear()
    again = run_suite(suite(tmp_path), tmp_path / "out", resume=True)
    assert (steps.made, steps.measured) == ([], [])
    assert len(again["rows"]) == 6


def test_another_recipe_is_made_again_and_only_that(tmp_path: Path, steps: Steps) -> None:
    run_suite(suite(tmp_path), tmp_path / "out")
    steps.made.clear()
    steps.measured.clear()
    path = tmp_path / "small.yaml"
    path.write_text(path.read_text().replace("bits: 8", "bits: 4"))
    run_suite(load(path), tmp_path / "out", resume=True)
    assert steps.made == ["table"]
    assert steps.measured == [["fp32, onnxruntime", "fp32, torch", "table, onnxruntime"]]


def test_without_resume_all_is_made_again(tmp_path: Path, steps: Steps) -> None:
    for _ in range(2):
        run_suite(suite(tmp_path), tmp_path / "out")
    assert steps.made == ["int8", "table"] * 2


def test_a_point_that_fails_does_not_stop_the_others(tmp_path: Path, steps: Steps) -> None:
    steps.broken.add("int8")
    found = run_suite(suite(tmp_path), tmp_path / "out")
    assert found["failed"] == [{"what": "tiny, int8", "code": "CK-M031", "why": "it can't be done"}]
    assert steps.made == ["table"]
    steps.broken.clear()
    assert run_suite(suite(tmp_path), tmp_path / "out", resume=True)["failed"] == []
    assert steps.made == ["table", "int8"]


def test_an_interrupt_ends_the_suite_and_is_no_failure_of_a_point(
    tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise InterruptedRun("CK-B018", "the run was interrupted")

    monkeypatch.setattr(module, "measure", stopped)
    with pytest.raises(InterruptedRun):
        run_suite(suite(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out" / "small.json").exists()
    assert not list((tmp_path / "out" / "cells").glob("*measured*"))


def test_data_that_are_not_there_are_missed_at_once(tmp_path: Path, steps: Steps) -> None:
    made = suite(tmp_path)
    (tmp_path / "pairs.tsv").unlink()
    with pytest.raises(DataError) as caught:
        run_suite(made, tmp_path / "out")
    assert caught.value.code == "CK-D001"
    assert steps.made == []


@pytest.mark.slow
def test_a_small_suite_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESSKIT_BENCH_LOCK", str(tmp_path / "lock"))
    path = suite(tmp_path, "together").path
    text = path.read_text().replace("engines: [onnxruntime]", "engines: [torch, onnxruntime]")
    path.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith("  int8:")))
    found = run_suite(load(path), tmp_path / "out")
    assert found["failed"] == []
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["fp32, onnxruntime", "fp32, torch", "table, torch", "table, onnxruntime"]
    assert all(row["error"] is None for row in rows.values())
    table = rows["table, onnxruntime"]
    assert table["size_bytes"] < rows["fp32, onnxruntime"]["size_bytes"]
    # The same score before saving, and after reloading and exporting: int8 rows differ by rounding at most.
    scores = {name: row["quality"]["sts"] for name, row in rows.items()}
    assert scores["fp32, torch"]["value"] == pytest.approx(scores["fp32, onnxruntime"]["value"])
    for engine in ("torch", "onnxruntime"):
        assert scores[f"table, {engine}"]["value"] == pytest.approx(scores[f"table, {engine}"]["live"], abs=1e-6)
    assert rows["fp32, torch"]["cosine"]["everyday"]["min"] > 0.99999
    assert 0.999 < table["cosine"]["documentation"]["mean"] < 1
    cell = "encode/b1/t16/th1"
    assert {row["latency"][cell]["p50_ms"] > 0 for row in rows.values()} == {True}
    assert table["latency"][cell]["verdict"] in ("FASTER", "SLOWER", "SAME", "AMBIGUOUS", "INVALID")
    assert "| table, onnxruntime |" in (tmp_path / "out" / "small.md").read_text()
    assert len(list((tmp_path / "out" / "records").iterdir())) == 1
