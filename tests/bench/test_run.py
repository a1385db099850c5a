"""Whole runs on a small ONNX file: the record, a kill and a resume, an interrupt, arms that fail."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compresskit.bench import measure, record
from compresskit.bench.analysis import metrics_of
from compresskit.bench.comparisons import Rules, compare_arms
from compresskit.bench.doctor import write_probe
from compresskit.bench.options import BenchOptions
from compresskit.bench.record import Record
from compresskit.bench.run import run
from compresskit.bench.schedule import Profile
from compresskit.errors import CompressKitError, InterruptedRun, UsageError
from tests.bench.schema import violations

SCHEMA = json.loads(Path(record.__file__).with_name("schema.json").read_text())


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_probe(tmp_path_factory.mktemp("probe") / "probe.onnx")


def options(probe: Path, brief: Profile, **changes: object) -> BenchOptions:
    settings: dict[str, object] = {"models": (str(probe), str(probe)), "lengths": (16,), "custom": brief, **changes}
    return BenchOptions(**settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def measured(probe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    """A run of the file against itself, with all details, long enough for the parent's share of the CPU."""
    from compresskit.bench.schedule import PROFILES

    path = tmp_path_factory.mktemp("run") / "out.json"
    profile = replace(PROFILES["quick"], seconds=3.0, slice_seconds=0.06, most_blocks=12)
    return run(options(probe, profile), path), path


def test_the_record_is_valid_and_read_back(measured: tuple[Record, Path]) -> None:
    made, path = measured
    assert record.read(path) == made
    assert violations(json.loads(path.read_text()), SCHEMA) == []
    assert made.complete
    assert [arm.role for arm in made.arms] == ["baseline", "control", "candidate"]
    assert {block.process for block in made.blocks} == {0, 1}
    assert made.samples_ref == "out.jsonl"


def test_the_schema_check_sees_mistakes(measured: tuple[Record, Path]) -> None:
    content = json.loads(measured[1].read_text())
    content["arms"][0]["metrics"]["size.served"]["value"] = "large"
    content["comparisons"][0]["verdict"] = "GOOD"
    del content["plan"]["profile"]
    assert len(violations(content, SCHEMA)) == 3


def test_every_figure_follows_from_the_raw_samples(measured: tuple[Record, Path]) -> None:
    made, path = measured
    again = record.read(path)
    for cell in again.plan.cells:
        for arm in again.arms:
            assert metrics_of(again.blocks, cell, arm.name, level=again.plan.level) == arm.cells[cell.id]
    rows, noise = compare_arms(
        again.blocks,
        again.plan.cells,
        again.baseline.name,
        "probe.onnx (again)",
        ["probe.onnx #2"],
        headline=again.plan.headline,
        rules=Rules(level=again.plan.level, delta=again.plan.delta, seed=again.plan.seed),
    )
    assert rows == again.comparisons
    assert noise == again.env.noise
    assert made.headline is not None
    assert made.headline.verdict in ("SAME", "AMBIGUOUS", "FASTER", "SLOWER")


def test_blocks_are_balanced_and_complete(measured: tuple[Record, Path]) -> None:
    for block in measured[0].blocks:
        assert [part.arm for part in block.slices] == block.order == block.order[::-1]
        for part in block.slices:
            assert len(part.wall_ms) == len(part.cpu_ms) == len(part.flags) == len(part.tokens)
            assert min(part.wall_ms) > 0
        assert len({part.output_hash for part in block.slices}) == 1  # one model, one input, one output


def test_unavailable_is_never_a_number(measured: tuple[Record, Path]) -> None:
    seen = 0
    for arm in measured[0].arms:
        for metric in (*arm.metrics.values(), *(item for cell in arm.cells.values() for item in cell.values())):
            if metric.status == "unavailable":
                seen += 1
                assert metric.value is None
                assert metric.reason
            else:
                assert metric.value is not None
                assert math.isfinite(metric.value)
    assert seen


def test_the_control_is_equal_to_the_baseline(measured: tuple[Record, Path]) -> None:
    control = measured[0].arms[1]
    assert control.metrics["parity.max_abs"].value == 0.0
    assert control.metrics["parity.cosine"].value == pytest.approx(1.0)


def test_the_parent_takes_little_of_the_processor(measured: tuple[Record, Path]) -> None:
    """Its work is some tenths of a millisecond a slice; a busy machine makes that more, so slices are long here.

    With real models and the profile's own slices it is below .02 as well: benchmarks/results/validation.json.
    """
    share = measured[0].parent_cpu_share
    assert share is not None
    assert 0 < share < 0.02


def test_nothing_private_is_written(measured: tuple[Record, Path]) -> None:
    text = measured[1].read_text()
    assert str(measured[1].parent) not in text
    assert os.uname().nodename not in json.dumps(json.loads(text)["env"]["system"].get("host"))


SCRIPT = """
import json, sys
from pathlib import Path
from compresskit.bench.options import BenchOptions
from compresskit.bench.run import run
from compresskit.bench.schedule import Profile
settings = json.loads(sys.argv[1])
profile = Profile(**{**settings["profile"], "replicates": tuple(settings["profile"]["replicates"])})
options = BenchOptions(models=tuple(settings["models"]), lengths=(16,), custom=profile, details=False)
run(options, Path(settings["output"]))
"""


def start(probe: Path, profile: Profile, output: Path, **environment: str) -> subprocess.Popen[bytes]:
    settings = {"models": [str(probe), str(probe)], "profile": vars(profile), "output": str(output)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(settings)],
        env={**os.environ, **environment},
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("together", [True, False])
def test_kill_and_resume_give_the_same_blocks(probe: Path, brief: Profile, tmp_path: Path, together: bool) -> None:
    profile = replace(brief, together=together, half_width=None)
    whole = run(options(probe, profile, details=False), tmp_path / "whole.json")
    at = int(np.random.default_rng().integers(1, len(whole.blocks)))
    killed = start(probe, profile, tmp_path / "out.json", CK_FAULT=f"bench.block:kill:{at + 1}")
    assert killed.wait(120) == -signal.SIGKILL
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "block" for line in lines) == at
    assert not (tmp_path / "out.json").exists()
    resumed = run(options(probe, profile, details=False), tmp_path / "out.json", resume=True)
    assert {block.id for block in resumed.blocks} == {block.id for block in whole.blocks}
    assert len(resumed.blocks) == len(whole.blocks)
    assert violations(json.loads((tmp_path / "out.json").read_text()), SCHEMA) == []
    assert {block.process for block in resumed.blocks} - {0, 1}  # other processes, and the record says so


def test_workers_end_with_their_parent(probe: Path, brief: Profile, tmp_path: Path) -> None:
    long = replace(brief, seconds=60.0, most_blocks=2000, limit=60.0)
    parent = start(probe, long, tmp_path / "out.json")
    workers: set[int] = set()
    until = time.monotonic() + 60
    while time.monotonic() < until and len(workers) < 6:
        workers |= children(parent.pid)
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert len(workers) == 6
    until = time.monotonic() + 20
    while time.monotonic() < until and any(alive(pid) for pid in workers):
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def children(pid: int) -> set[int]:
    """Workers only: the description of the machine asks short-lived programs."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    found = {int(word) for word in path.read_text().split()} if path.exists() else set()
    return {child for child in found if b"compresskit.bench.worker" in command(child)}


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def alive(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    try:
        return path.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_interrupt_leaves_a_valid_partial_record(
    probe: Path, brief: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = measure.Measurement._block
    seen = 0

    def stop(self: measure.Measurement, *arguments: object) -> None:
        nonlocal seen
        seen += 1
        if seen == 4:
            raise KeyboardInterrupt
        block(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(measure.Measurement, "_block", stop)
    path = tmp_path / "out.json"
    with pytest.raises(InterruptedRun) as caught:
        run(options(probe, brief, details=False), path)
    assert caught.value.code == "CK-B018"
    partial = record.read(path)
    assert not partial.complete
    assert len(partial.blocks) == 3
    assert partial.plan.stopped_by == "interrupted"
    assert violations(json.loads(path.read_text()), SCHEMA) == []
    monkeypatch.undo()
    assert run(options(probe, brief, details=False), path, resume=True).complete


def test_resume_refuses_another_run(probe: Path, brief: Profile, tmp_path: Path) -> None:
    run(options(probe, brief, details=False), tmp_path / "out.json")
    with pytest.raises(UsageError) as caught:
        run(options(probe, brief, details=False, seed=1), tmp_path / "out.json", resume=True)
    assert caught.value.code == "CK-B016"
    assert "seed" in caught.value.why


def test_an_arm_that_fails_is_marked_and_the_others_go_on(probe: Path, brief: Profile, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    models = (str(probe), str(tmp_path / "broken.onnx"), str(probe))
    made = run(options(probe, brief, models=models, details=False))
    failed = made.arm("broken.onnx")
    assert failed.error
    assert failed.cells == {}
    assert any(notice.code == "CK-B007" for notice in made.warnings)
    assert made.headline is None or made.headline.b != "broken.onnx"
    assert all(failed.name not in block.order for block in made.blocks)
    with pytest.raises(CompressKitError):
        run(options(probe, brief, models=(str(tmp_path / "broken.onnx"), str(probe)), details=False))


def test_one_process_at_a_time(probe: Path, brief: Profile) -> None:
    made = run(options(probe, replace(brief, least_blocks=1, most_blocks=1), interleave="process", details=False))
    assert made.plan.interleave == "process"
    assert len(made.blocks) == 2


def test_sets_one_after_another_and_cold_starts(probe: Path, brief: Profile) -> None:
    profile = replace(brief, together=False, replicates=(2, 3), half_width=10.0)
    made = run(options(probe, profile))
    assert {block.process for block in made.blocks} == {0, 1}
    assert made.plan.stopped_by == "half_width"
    assert (made.baseline.metrics["cold_start.load_uncached"].value or 0) > 0
    assert made.arms[1].metrics["cold_start.load_uncached"].status == "unavailable"
    never = run(options(probe, replace(profile, half_width=1e-9), details=False))
    assert {block.process for block in never.blocks} == {0, 1, 2}


def test_several_shapes_of_work(probe: Path, brief: Profile) -> None:
    made = run(options(probe, brief, lengths=(8, 16), batches=(1, 2), threads=(1, 2), details=False, control=False))
    assert len(made.plan.cells) == 8
    assert len(made.comparisons) == 8
    assert sum(row.headline for row in made.comparisons) == 1
    assert any(item.what == "the baseline against itself" for item in made.not_measured)
    hashes = {(cell.batch, cell.length): set() for cell in made.plan.cells}  # type: ignore[var-annotated]
    for cell in made.plan.cells:
        hashes[cell.batch, cell.length].add(cell.input_hash)
    assert all(len(found) == 1 for found in hashes.values())
