"""Arms against the baseline: ratios with intervals, the witness that decides, Holm's correction, the noise floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compresskit.bench.analysis import disturbed_share, guard_statistics, headline_statistic, log_ratios
from compresskit.bench.blocks import Block
from compresskit.bench.record import Cell, Comparison, Guard, Noise
from compresskit.bench.verdict import Evidence, Interval, judge
from compresskit.numerics.statistics import (
    RESAMPLES,
    bootstrap_p,
    grouped_midmean,
    hierarchical_bootstrap,
    holm,
    interval,
)

DISTURBED = 0.1
"""Share of interrupted samples from which the wall clock tells more of the scheduler than of the model."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rules:
    """How to compute: as in the plan."""

    level: float = 0.95
    delta: float = 0.02
    seed: int = 0
    resamples: int = RESAMPLES


@dataclass(frozen=True)
class _Row:
    """One arm in one cell. ``witnesses``: ``wall`` and the guards, each with ratio, interval, p."""

    cell: Cell
    arm: str
    metric: str
    witnesses: dict[str, Interval]
    decided_by: str
    disturbed: float
    blocks: int
    processes: int

    @property
    def deciding(self) -> Interval:
        return self.witnesses[self.decided_by]


def compare_arms(
    blocks: Sequence[Block],
    cells: Sequence[Cell],
    baseline: str,
    control: str | None,
    others: Sequence[str],
    *,
    headline: str,
    device: str = "cpu",
    rules: Rules | None = None,
) -> tuple[list[Comparison], Noise]:
    """Every other arm against ``baseline`` in every cell, the control first, and the noise of the headline's cell.

    The headline is the first of ``others`` in the cell ``headline``; the p-values of all other rows are adjusted by
    Holm, the control's aside. The wall clock decides; where other processes interrupted more than ``DISTURBED`` of the
    samples of a single thread on the CPU, its CPU time decides, and the wall clock must not contradict it.
    """
    chosen = rules or Rules()
    rows = [
        row
        for cell in cells
        for arm in ([control] if control else []) + list(others)
        if (row := _row(blocks, cell, baseline, arm, device, chosen)) is not None
    ]
    controls = {row.cell.id: row for row in rows if row.arm == control}
    first = next((row for row in rows if row.cell.id == headline and row.arm in others[:1]), None)
    corrected = [row for row in rows if row is not first and row.arm != control]
    adjusted = dict(zip(map(id, corrected), holm([row.deciding.p for row in corrected]), strict=True))
    found = []
    for row in rows:
        p = adjusted.get(id(row), row.deciding.p)
        noise = None if row.arm == control else controls.get(row.cell.id)
        found.append(_comparison(row, baseline, noise, p, chosen, headline=row is first, control=row.arm == control))
    return found, _noise(controls.get(headline))


def _row(blocks: Sequence[Block], cell: Cell, a: str, b: str, device: str, rules: Rules) -> _Row | None:
    name, statistic = headline_statistic(cell)
    groups = log_ratios(blocks, cell.id, a, b, statistic)
    if not groups:
        return None
    witnesses = {"wall": _interval(groups, rules)}
    for guard, second in guard_statistics(cell, device=device).items():
        witnesses[guard] = _interval(log_ratios(blocks, cell.id, a, b, second), rules)
    disturbed = disturbed_share(blocks, cell.id, (a, b))
    decided_by = "cpu_time" if disturbed > DISTURBED and "cpu_time" in witnesses else "wall"
    return _Row(cell, b, name, witnesses, decided_by, disturbed, sum(map(len, groups)), len(groups))


def half_width(
    blocks: Sequence[Block], cell: Cell, a: str, b: str, *, device: str, rules: Rules | None = None
) -> float | None:
    """Half the relative width of the deciding interval of one row; None without blocks."""
    row = _row(blocks, cell, a, b, device, rules or Rules())
    return None if row is None else math.sqrt(row.deciding.high / row.deciding.low) - 1


def _interval(groups: Sequence[Floats], rules: Rules) -> Interval:
    draws = hierarchical_bootstrap(groups, resamples=rules.resamples, seed=rules.seed)
    low, high = interval(draws, rules.level)
    return Interval(math.exp(grouped_midmean(groups)), math.exp(low), math.exp(high), bootstrap_p(draws))


def _comparison(
    row: _Row, baseline: str, control_row: _Row | None, p: float, rules: Rules, *, headline: bool, control: bool
) -> Comparison:
    noise = control_row.witnesses[row.decided_by] if control_row else None
    evidence = Evidence(
        witnesses=row.witnesses,
        decided_by=row.decided_by,
        disturbed=row.disturbed,
        blocks=row.blocks,
        processes=row.processes,
        p=p,
        noise=noise,
        delta=rules.delta,
        level=rules.level,
    )
    verdict, reason = judge(evidence)
    wall = row.witnesses["wall"]
    return Comparison(
        a=baseline,
        b=row.arm,
        cell=row.cell.id,
        metric=row.metric,
        ratio=wall.ratio,
        ci=(wall.low, wall.high),
        level=rules.level,
        p=p,
        p_raw=row.deciding.p,
        guards={
            name: Guard(ratio=found.ratio, ci=(found.low, found.high))
            for name, found in row.witnesses.items()
            if name != "wall"
        },
        decided_by=row.decided_by,
        verdict=verdict,
        reason=reason,
        headline=headline,
        control=control,
        beyond_noise=None if noise is None else row.deciding.distance > noise.reach,
    )


def _noise(row: _Row | None) -> Noise:
    """Of the witness that decides: what else the control shows doesn't limit the verdicts."""
    if row is None:
        return Noise(fit="unknown", reasons=["the baseline was not measured against itself"])
    found = row.deciding
    fit = "good" if found.reach < math.log(1.02) else "fair" if found.reach < math.log(1.05) else "poor"
    reasons = (
        [] if fit == "good" else [f"the baseline differs from itself by up to {100 * math.expm1(found.reach):.1f} %"]
    )
    if row.disturbed > DISTURBED:
        reasons.append(f"other processes interrupted {100 * row.disturbed:.0f} % of the samples")
        fit = "poor" if fit == "poor" else "fair"
    wall = row.witnesses["wall"]
    return Noise(aa_ratio=wall.ratio, aa_ci=(wall.low, wall.high), fit=fit, reasons=reasons)
