"""Ratios, intervals and verdicts from blocks whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compresskit.bench.blocks import Block
from compresskit.bench.comparisons import Rules, compare_arms, half_width
from compresskit.bench.record import Comparison, Noise
from compresskit.numerics.statistics import bootstrap_p, hierarchical_bootstrap, holm, interval, midmean
from tests.bench.fake import CELL, blocks, shuffled

RULES = Rules(resamples=2000)


def compared(made: list[Block], others: tuple[str, ...] = ("b",)) -> tuple[list[Comparison], Noise]:
    return compare_arms(made, [CELL], "a", "a2", others, headline=CELL.id, rules=RULES)


def verdict(made: list[Block]) -> str:
    rows, _ = compared(made)
    return next(row.verdict for row in rows if row.headline)


@pytest.mark.parametrize(
    ("factor", "wanted"), [(1.10, "SLOWER"), (1 / 1.10, "FASTER"), (1.0, "SAME"), (1.02, "AMBIGUOUS")]
)
def test_verdicts(factor: float, wanted: str) -> None:
    made = blocks({"a": 1.0, "a2": 1.0, "b": factor}, count=40, between=0.001)
    assert verdict(made) == wanted


def test_the_row_is_recomputed_from_raw_samples() -> None:
    made = blocks({"a": 1.0, "a2": 1.0, "b": 1.2})
    rows, noise = compared(made)
    row = rows[1]
    groups: dict[int, list[float]] = {}
    for block in made:
        times = {arm: [x for part in block.slices if part.arm == arm for x in part.wall_ms] for arm in "ab"}
        groups.setdefault(block.process, []).append(math.log(np.median(times["b"]) / np.median(times["a"])))
    values = [np.array(groups[key]) for key in sorted(groups)]
    draws = hierarchical_bootstrap(values, resamples=2000, seed=0)
    low, high = interval(draws)
    assert row.ratio == pytest.approx(math.exp(np.mean([midmean(group) for group in values])))
    assert row.ci == pytest.approx((math.exp(low), math.exp(high)))
    assert row.p_raw == bootstrap_p(draws)
    assert rows[0].control
    assert noise.aa_ci == rows[0].ci


def test_order_of_blocks_does_not_matter() -> None:
    made = blocks({"a": 1.0, "a2": 1.0, "b": 1.2})
    ratio = compared(made)[0][1].ratio
    assert compared(shuffled(made))[0][1].ratio == pytest.approx(ratio)


def test_one_headline_and_holm_for_the_rest() -> None:
    made = blocks({"a": 1.0, "a2": 1.0, "b": 1.004, "c": 1.006, "d": 1.3}, noise=0.1)
    rows, _ = compared(made, ("b", "c", "d"))
    assert [row.b for row in rows if row.headline] == ["b"]
    rest = [row for row in rows if not row.headline and not row.control]
    raw = [row.p_raw for row in rest]
    assert [row.p for row in rest] == holm([value or 0.0 for value in raw])
    headline = next(row for row in rows if row.headline)
    assert headline.p == headline.p_raw


def test_cpu_time_that_does_not_follow_makes_doubt() -> None:
    factors = {"a": 1.0, "a2": 1.0, "b": 1.3}
    made = blocks(factors, cpu={"a": 1.0, "a2": 1.0, "b": 1.0})
    rows, _ = compared(made)
    assert rows[1].verdict == "AMBIGUOUS"
    assert "CPU time doesn't show it" in rows[1].reason


def test_a_disturbed_wall_clock_gives_way_to_cpu_time() -> None:
    made = blocks({"a": 1.0, "a2": 1.0, "b": 1.1}, flags=0.8, noise=0.5, count=40)
    row = compared(made)[0][1]
    assert row.decided_by == "cpu_time"
    assert row.verdict == "SLOWER"
    assert "interrupted" in row.reason
    calm = compared(blocks({"a": 1.0, "a2": 1.0, "b": 1.1}, flags=0.05))[0][1]
    assert calm.decided_by == "wall"


def test_more_threads_have_no_cpu_witness() -> None:
    cell = CELL.model_copy(update={"threads": 2})
    made = blocks({"a": 1.0, "b": 1.2}, flags=0.9, cell=cell)
    rows, noise = compare_arms(made, [cell], "a", None, ["b"], headline=cell.id, rules=RULES)
    assert rows[0].decided_by == "wall"
    assert set(rows[0].guards) == {"wall_min"}
    assert noise.fit == "unknown"


def test_a_change_within_the_noise_floor_is_no_change() -> None:
    made = blocks({"a": 1.0, "a2": 1.12, "b": 1.1}, count=40)
    rows, noise = compared(made)
    assert rows[1].verdict == "AMBIGUOUS"
    assert rows[1].beyond_noise is False
    assert "differs as much from itself" in rows[1].reason
    assert noise.fit == "poor"


def test_two_processes_need_twice_the_margin() -> None:
    factors = {"a": 1.0, "a2": 1.0, "b": 1.032}
    few = blocks(factors, processes=2, count=100, between=0.0, noise=0.02)
    many = blocks(factors, processes=5, count=100, between=0.0, noise=0.02)
    assert verdict(few) == "AMBIGUOUS"
    assert verdict(many) == "SLOWER"


def test_too_few_blocks_are_invalid() -> None:
    made = blocks({"a": 1.0, "a2": 1.0, "b": 2.0}, processes=1, count=3)
    assert verdict(made) == "INVALID"


def test_error_rate_of_equal_models() -> None:
    """Of runs on a simulated busy machine, with processes that differ by 1 %, few claim a change."""
    wrong = 0
    for seed in range(60):
        made = blocks(
            {"a": 1.0, "a2": 1.0, "b": 1.0}, processes=2, count=20, noise=0.3, between=0.01, flags=0.7, seed=seed
        )
        rows, _ = compare_arms(made, [CELL], "a", "a2", ["b"], headline=CELL.id, rules=Rules(resamples=400))
        wrong += rows[1].verdict in ("FASTER", "SLOWER")
    assert wrong <= 2


def test_half_width_shrinks_with_blocks() -> None:
    wide = half_width(blocks({"a": 1.0, "b": 1.0}, count=5), CELL, "a", "b", device="cpu", rules=RULES)
    narrow = half_width(blocks({"a": 1.0, "b": 1.0}, count=80), CELL, "a", "b", device="cpu", rules=RULES)
    assert wide is not None
    assert narrow is not None
    assert narrow < 0.5 * wide
    assert half_width([], CELL, "a", "b", device="cpu") is None
