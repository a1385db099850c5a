"""From an interval to a word, and why.

FASTER and SLOWER are claims beyond ``delta``, and need every witness: the wall clock's interval lies outside the
margin, the guards (CPU time of one thread, device time, least wall time) point the same way, and the change is larger
than what the baseline shows against itself. Other work on the machine disturbs the witnesses in different ways.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from compresskit.bench.record import Guard, Verdict

LEAST_BLOCKS = 4


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made from. Ratios are of times, other over baseline.

    Args:
        p: adjusted for the number of rows, where it is not the headline.
        noise: the control's interval.
    """

    ratio: float
    ci: tuple[float, float]
    blocks: int
    p: float
    guards: Mapping[str, Guard]
    noise: tuple[float, float] | None
    delta: float
    level: float


def judge(evidence: Evidence) -> tuple[Verdict, str]:
    """The verdict, and the sentence that explains it."""
    if evidence.blocks < LEAST_BLOCKS or not math.isfinite(evidence.ratio):
        return "INVALID", f"{evidence.blocks} blocks are too few"
    low, high = evidence.ci
    floor, ceiling = 1 / (1 + evidence.delta), 1 + evidence.delta
    margin = f"{100 * evidence.delta:g} %"
    if floor <= low and high <= ceiling:
        against = _opposed(evidence, floor, ceiling)
        if against:
            return "AMBIGUOUS", f"the interval lies within {margin}, but {against} doesn't"
        return "SAME", f"the interval lies within {margin}"
    if low <= ceiling and high >= floor:
        return "AMBIGUOUS", f"the interval reaches into the margin of {margin}"
    slower = low > ceiling
    doubt = _doubt(evidence, slower)
    if doubt:
        return "AMBIGUOUS", doubt
    return ("SLOWER" if slower else "FASTER"), f"the interval and the guards lie beyond {margin}"


def beyond_noise(ratio: float, noise: tuple[float, float] | None) -> bool | None:
    """Whether the change is larger than the largest that the control's interval holds; None without a control."""
    if noise is None:
        return None
    return abs(math.log(ratio)) > max(abs(math.log(edge)) for edge in noise)


def _doubt(evidence: Evidence, slower: bool) -> str:
    if evidence.p > 1 - evidence.level:
        return "not significant once corrected for the number of comparisons"
    for name, guard in evidence.guards.items():
        low, high = guard.ci or (guard.ratio, guard.ratio)
        if (low <= 1.0) if slower else (high >= 1.0):
            return f"{_NAMES.get(name, name)} doesn't show it"
    if beyond_noise(evidence.ratio, evidence.noise) is False:
        return "no measurable change: the baseline differs as much from itself"
    return ""


def _opposed(evidence: Evidence, floor: float, ceiling: float) -> str:
    """A guard whose whole interval lies outside the margin."""
    for name, guard in evidence.guards.items():
        low, high = guard.ci or (guard.ratio, guard.ratio)
        if low > ceiling or high < floor:
            return _NAMES.get(name, name)
    return ""


_NAMES = {"cpu_time": "CPU time", "wall_min": "the least wall time", "device": "the device's own clock"}
