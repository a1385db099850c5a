"""From intervals to a word, and why.

FASTER and SLOWER are claims beyond a margin, and need every witness: the deciding interval lies outside the margin, the
others (CPU time of one thread, device time, least wall time) don't contradict it, and the change is larger than
what the baseline shows against itself. Other work on the machine disturbs the witnesses in different ways.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from compresskit.bench.record import Verdict

LEAST_BLOCKS = 4
KNOWN_PROCESSES, CAUTION = 5, 2
"""With fewer processes than the first, or a disturbed wall clock, claims need a margin as many times ``delta`` as the
second: two processes of one model were seen to differ by 4 % for as long as they lived."""


@dataclass(frozen=True)
class Interval:
    """A ratio of times, other over baseline, with its interval and the p of no difference."""

    ratio: float
    low: float
    high: float
    p: float = 0.0

    @property
    def distance(self) -> float:
        """Of the ratio from 1, in logarithms."""
        return abs(math.log(self.ratio))

    @property
    def reach(self) -> float:
        """Of the interval's farther end from 1, in logarithms."""
        return max(abs(math.log(self.low)), abs(math.log(self.high)))


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made from.

    Args:
        witnesses: ``wall``, and as far as there are ``wall_min``, ``cpu_time``, ``device``.
        decided_by: which of them decides.
        disturbed: share of samples that other processes interrupted.
        processes: sets of processes that were measured.
        p: of the deciding one, adjusted for the number of rows where it is not the headline.
        noise: the control's interval of the deciding witness.
    """

    witnesses: Mapping[str, Interval]
    decided_by: str
    disturbed: float
    blocks: int
    processes: int
    p: float
    noise: Interval | None
    delta: float
    level: float


def judge(evidence: Evidence) -> tuple[Verdict, str]:
    """The verdict, and the sentence that explains it."""
    if evidence.blocks < LEAST_BLOCKS:
        return "INVALID", f"{evidence.blocks} blocks are too few"
    found = evidence.witnesses[evidence.decided_by]
    floor, ceiling = 1 / (1 + evidence.delta), 1 + evidence.delta
    by = _by(evidence)
    if floor <= found.low and found.high <= ceiling:
        against = _outside(evidence, floor, ceiling)
        if against:
            return "AMBIGUOUS", f"{by} the interval lies within {100 * evidence.delta:g} %, but {against} lies outside"
        return "SAME", f"{by} the interval lies within {100 * evidence.delta:g} %"
    margin = _margin(evidence)
    if found.low <= 1 + margin and found.high >= 1 / (1 + margin):
        return "AMBIGUOUS", f"{by} the interval reaches into the margin of {100 * margin:g} %"
    slower = found.low > 1
    doubt = _doubt(evidence, slower=slower)
    if doubt:
        return "AMBIGUOUS", f"{by} {doubt}"
    return (
        "SLOWER" if slower else "FASTER"
    ), f"{by} the interval lies beyond {100 * margin:g} %, and nothing contradicts it"


def _margin(evidence: Evidence) -> float:
    sure = evidence.decided_by != "cpu_time" and evidence.processes >= KNOWN_PROCESSES
    return evidence.delta if sure else CAUTION * evidence.delta


def _by(evidence: Evidence) -> str:
    if evidence.decided_by != "cpu_time":
        return "by the wall clock"
    return f"by CPU time, as {100 * evidence.disturbed:.0f} % of samples were interrupted:"


def _doubt(evidence: Evidence, *, slower: bool) -> str:
    """Why the deciding interval isn't enough.

    Where the wall clock decides, every other witness must show the change as well. Where it is disturbed, it need only
    not point the other way.
    """
    found = evidence.witnesses[evidence.decided_by]
    if evidence.p > 1 - evidence.level:
        return "not significant once corrected for the number of comparisons"
    for name, other in evidence.witnesses.items():
        if name == evidence.decided_by:
            continue
        if evidence.decided_by == "wall" and not _shows(other, evidence.delta, slower=slower):
            return f"{_NAMES[name]} doesn't show it"
        if other.high < 1.0 if slower else other.low > 1.0:
            return f"{_NAMES[name]} points the other way"
    wall = evidence.witnesses["wall"]
    if (wall.ratio <= 1.0) if slower else (wall.ratio >= 1.0):
        return "the median wall time doesn't show it"
    if evidence.noise is not None and found.distance <= evidence.noise.reach:
        return "no measurable change: the baseline differs as much from itself"
    return ""


def _shows(other: Interval, delta: float, *, slower: bool) -> bool:
    """Whether a witness alone would speak of a change of this sign, and of one above ``delta``."""
    if slower:
        return other.low > 1.0 and other.ratio > 1 + delta
    return other.high < 1.0 and other.ratio < 1 / (1 + delta)


def _outside(evidence: Evidence, floor: float, ceiling: float) -> str:
    """Another witness whose whole interval lies outside the margin."""
    for name, other in evidence.witnesses.items():
        if name != evidence.decided_by and (other.low > ceiling or other.high < floor):
            return _NAMES[name]
    return ""


_NAMES = {
    "wall": "the median wall time",
    "cpu_time": "CPU time",
    "wall_min": "the least wall time",
    "device": "the device's own clock",
}
