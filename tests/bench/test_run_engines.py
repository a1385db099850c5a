"""Runs with torch: decoding in two engines, quality beside speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compresskit.bench.options import BenchOptions
from compresskit.bench.prepare import prepare
from compresskit.bench.run import run
from compresskit.bench.schedule import Profile
from tests import models


def test_decoding_in_two_engines(gpt2: Path, brief: Profile) -> None:
    options = BenchOptions(
        models=(str(gpt2), str(gpt2 / "model.onnx")),
        lengths=(12,),
        new_tokens=5,
        control=False,
        custom=replace(brief, replicates=(1, 1), least_blocks=4, most_blocks=4),
    )
    made = run(options)
    assert made.plan.cells[0].scenario == "decode"
    left, right = made.arms
    for block in made.blocks:
        for part in block.slices:
            assert all(len(row) == 4 for row in part.token_ms)
            for whole, first, tokens in zip(part.wall_ms, part.first_ms, part.token_ms, strict=True):
                assert first + sum(tokens) == pytest.approx(whole, rel=0.2, abs=1.0)
    hashes = {
        arm.name: {p.output_hash for b in made.blocks[:1] for p in b.slices if p.arm == arm.name} for arm in made.arms
    }
    assert hashes[left.name] == hashes[right.name]  # the same text
    for arm in made.arms:
        found = arm.cells[made.plan.headline]
        assert found["latency.token.p50"].value
        assert found["latency.token.p50"].n == sum(
            len(row) for b in made.blocks for p in b.slices if p.arm == arm.name for row in p.token_ms
        )
        assert found["latency.token.p99"].status == "unavailable"
    assert made.comparisons[0].metric == "latency.token.p50"
    assert left.metrics["compute.flops_dense"].value == 2 * (left.metrics["compute.macs_dense"].value or 0)
    assert left.parts
    assert left.engine_details["threads"] == 1


def test_prefill_is_the_prompt_and_the_first_token(gpt2: Path, brief: Profile) -> None:
    options = BenchOptions(
        models=(str(gpt2 / "model.onnx"), str(gpt2 / "model.onnx")),
        scenarios=("prefill",),
        lengths=(12,),
        control=False,
        details=False,
        custom=replace(brief, replicates=(1, 1)),
    )
    made = run(options)
    assert made.plan.cells[0].new_tokens == 1
    for part in (part for block in made.blocks for part in block.slices):
        assert part.token_ms == [[]] * len(part.wall_ms)
        for whole, first in zip(part.wall_ms, part.first_ms, strict=True):
            assert 0 < first <= whole
        assert part.tokens == [13] * len(part.wall_ms)
    assert made.comparisons[0].metric == "latency.p50"


def test_standard_runs_have_onnxruntime_beside_torch(bert: Path, tmp_path: Path) -> None:
    made = prepare(BenchOptions(models=(str(bert),), profile="standard", lengths=(12,)), tmp_path, lambda *_: None)
    assert list(made.arms) == ["tiny", "tiny (again)", "tiny (onnxruntime float32)"]
    assert made.others == ["tiny (onnxruntime float32)"]
    exported = made.arms["tiny (onnxruntime float32)"]
    assert exported.path.is_file()
    assert exported.fingerprint.endswith(made.arms["tiny"].fingerprint)
    quick = prepare(BenchOptions(models=(str(bert),), lengths=(12,)), tmp_path, lambda *_: None)
    assert list(quick.arms) == ["tiny", "tiny (again)"]
    assert any("ONNX Runtime" in item.what for item in quick.not_measured)


def test_quality_is_of_the_measured_models(bert: Path, brief: Profile, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    data = tmp_path / "pairs.tsv"
    words = [word for word in models.vocabulary() if word.isalpha() and len(word) > 2]
    rows = [
        f"{a} {b} {c}\t{b} {c} {a}\t{n % 6}"
        for n, (a, b, c) in enumerate(zip(words, words[1:], words[2:], strict=False))
    ]
    data.write_text("sentence1\tsentence2\tscore\n" + "\n".join(rows) + "\n")
    options = BenchOptions(
        models=(str(bert / "model.onnx"), str(bert / "model.onnx")),
        lengths=(16,),
        control=False,
        task="sts",
        data=data,
        custom=replace(brief, replicates=(1, 1)),
    )
    made = run(options)
    before, after = (arm.quality for arm in made.arms)
    assert before is not None
    assert after is not None
    assert before.n == len(rows)
    assert before.value == after.value
    assert after.against["difference"] == 0.0
    assert after.against["ci"] == [0.0, 0.0]
    assert before.details["run_ms"] > 0
    assert made.plan.data_hash
