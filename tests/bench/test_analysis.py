"""Figures against numpy and scipy on the same raw samples; what the samples can't bear is not printed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from compresskit.bench.analysis import disturbed_share, log_ratios, metrics_of, quantiles
from compresskit.bench.blocks import Block, Slice
from compresskit.bench.record import Cell
from tests.bench.fake import CELL, blocks

DECODE = CELL.model_copy(update={"id": "d", "scenario": "decode", "batch": 2, "new_tokens": 4})


def raw(made: list[Block], arm: str, name: str = "wall_ms") -> np.ndarray:
    return np.array(
        [value for block in made for part in block.slices if part.arm == arm for value in getattr(part, name)]
    )


def test_quantiles_are_recomputed_from_raw_samples() -> None:
    made = blocks({"a": 1.0, "b": 2.0}, count=30, calls=5)
    samples = raw(made, "b")
    found = metrics_of(made, CELL, "b")
    assert len(samples) == 5 * 30 * 2 * 5
    for name, q in (("p10", 0.1), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        metric = found[f"latency.{name}"]
        assert metric.value == np.quantile(samples, q, method="inverted_cdf")
        wanted = stats.quantile_test(samples, p=q).confidence_interval(0.95)
        assert metric.ci == pytest.approx((wanted.low, wanted.high))
        assert (metric.n, metric.level, metric.unit) == (len(samples), 0.95, "ms")
    assert found["latency.p50"].value == np.median(samples)
    assert found["latency.min"].value == samples.min()
    assert found["latency.cpu_p50"].value == np.median(raw(made, "b", "cpu_ms"))
    assert found["throughput.tokens"].value == pytest.approx(16 * len(samples) / (samples.sum() / 1e3))
    assert found["throughput.samples"].value == pytest.approx(len(samples) / (samples.sum() / 1e3))


@pytest.mark.parametrize(("count", "printed"), [(458, False), (459, True)])
def test_p99_needs_459_samples(count: int, printed: bool) -> None:
    found = quantiles("x", np.arange(1.0, count + 1), "wall", 0.95)["x.p99"]
    assert (found.status == "measured") is printed
    assert printed or (found.value is None and found.reason == "p99 needs 459 samples, there are 458")


def test_no_percentile_beyond_its_samples() -> None:
    found = quantiles("x", np.arange(1.0, 7.0), "wall", 0.95)
    assert {name for name, metric in found.items() if metric.status == "measured"} == {"x.min"}


def test_flagged_samples_are_counted_and_stay() -> None:
    made = blocks({"a": 1.0}, flags=0.3, count=40)
    flags, samples = raw(made, "a", "flags"), raw(made, "a")
    found = metrics_of(made, CELL, "a")
    assert found["samples.flagged"].value == (flags > 0).sum()
    assert found["latency.p50"].n == len(samples)
    assert found["latency.p50_unflagged"].value == np.median(samples[flags == 0])
    assert disturbed_share(made, CELL.id, ["a"]) == pytest.approx((flags > 0).mean())


def test_an_arm_without_blocks_is_unavailable() -> None:
    found = metrics_of([], CELL, "a")
    assert found["latency.p50"].status == "unavailable"
    assert found["latency.p50"].value is None


def test_ratios_are_of_block_medians_by_process() -> None:
    made = blocks({"a": 1.0, "b": 1.5}, processes=2, count=6)
    groups = log_ratios(made, CELL.id, "a", "b", lambda parts: float(np.median([x for p in parts for x in p.wall_ms])))
    assert [len(group) for group in groups] == [6, 6]
    first = made[0]
    medians = {
        arm: np.median([value for part in first.slices if part.arm == arm for value in part.wall_ms]) for arm in "ab"
    }
    assert groups[0][0] == pytest.approx(np.log(medians["b"] / medians["a"]))


def decoding_block(generator: np.random.Generator) -> Block:
    tokens = generator.uniform(1, 2, size=(5, 3)).tolist()
    part = Slice(
        arm="a",
        position=0,
        wall_ms=[9.0] * 5,
        cpu_ms=[8.0] * 5,
        flags=[0] * 5,
        first_ms=generator.uniform(4, 5, 5).tolist(),
        token_ms=tokens,
        tokens=[24] * 5,
    )
    return Block(id="x", cell="d", replicate=0, number=0, order=["a"], slices=[part])


def test_decoding_counts_each_token() -> None:
    made = [decoding_block(np.random.default_rng(0)) for _ in range(2)]
    times = np.array([value for block in made for row in block.slices[0].token_ms for value in row])
    found = metrics_of(made, DECODE, "a")
    assert found["latency.token.p50"].value == np.median(times)
    assert found["latency.token.p50"].n == 30
    assert found["latency.first_token.p50"].n == 10
    assert found["throughput.generated"].value == pytest.approx(1e3 * 2 * 30 / times.sum())


def test_device_time_is_beside_the_wall_clock() -> None:
    cell = Cell(id="c", scenario="encode", batch=1, length=4, threads=1)
    part = Slice(
        arm="a", position=0, wall_ms=[2.0] * 8, cpu_ms=[1.0] * 8, flags=[0] * 8, device_ms=[1.5] * 8, tokens=[4] * 8
    )
    block = Block(id="x", cell="c", replicate=0, number=0, order=["a"], slices=[part])
    found = metrics_of([block], cell, "a")
    assert found["latency.device.p50"].value == 1.5
    assert found["latency.p50"].value == 2.0
