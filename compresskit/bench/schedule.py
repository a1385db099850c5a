"""Who runs when: blocks in random order and back, planned from the time that one call takes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

WARM_BELOW_MS = 20.0
"""A slice begins with a call that isn't timed, as the arm before had the caches; not so where a call takes longer."""


@dataclass(frozen=True)
class Profile:
    """How long and how often.

    Args:
        replicates: sets of fresh processes, the least and the most.
        together: all sets are started at once and take turns, instead of one set after another.
        seconds: of an undisturbed machine, aimed at for each arm of a cell over the least number of sets.
        most_seconds: for each arm, on the clock, after which no further set is begun.
        half_width: begin no further set once the headline's deciding interval is at most this wide to either side.
        slice_seconds: calls of one slice.
        least_blocks, most_blocks: of one set and cell.
        limit: seconds of measuring after which a cell ends, whatever was reached.
    """

    name: str
    replicates: tuple[int, int]
    together: bool
    seconds: float
    most_seconds: float
    half_width: float | None
    slice_seconds: float
    least_blocks: int
    most_blocks: int
    limit: float

    @property
    def rule(self) -> str:
        """The stop rule, for the record."""
        if self.half_width is None:
            return f"{self.seconds:g} s/arm"
        return f"half_width<={self.half_width:g} or {self.most_seconds:g} s/arm"


PROFILES = {
    "quick": Profile("quick", (2, 2), True, 3.0, 3.0, None, 0.02, 3, 30, 30.0),
    "standard": Profile("standard", (5, 8), False, 6.0, 60.0, 0.02, 0.02, 5, 60, 600.0),
    "publish": Profile("publish", (10, 40), False, 600.0, 1800.0, 0.01, 0.03, 10, 2000, 7200.0),
}


@dataclass(frozen=True)
class Slices:
    """Of one cell: ``calls`` in a slice after ``warm`` ones, ``blocks`` of one set of processes."""

    calls: int
    warm: int
    blocks: int


def plan_slices(profile: Profile, call_ms: float) -> Slices:
    """From the least time of a call of the slowest arm. Two slices an arm and block."""
    seconds = call_ms / 1e3
    calls = max(1, min(1000, round(profile.slice_seconds / max(seconds, 1e-6))))
    warm = 1 if call_ms < WARM_BELOW_MS else 0
    replicates = profile.replicates[0]
    wanted = profile.seconds / replicates / (2 * (calls + warm) * max(seconds, 1e-6))
    return Slices(calls, warm, int(max(profile.least_blocks, min(profile.most_blocks, wanted))))


def order(arms: Sequence[str], *, seed: int, cell: str, replicate: int, number: int) -> list[str]:
    """A random order of ``arms`` and back again: with two arms ABBA or BAAB. A steady drift hits all arms alike."""
    shuffled = list(arms)
    random.Random(f"{seed} {cell} {replicate} {number}").shuffle(shuffled)
    return shuffled + shuffled[::-1]


def block_id(
    models: Sequence[str], cell: str, input_hash: str, environment: str, *, replicate: int, number: int
) -> str:
    """What a block is known by: a hash of the models, the work, the machine and its place in the plan."""
    content = "\0".join([*models, cell, input_hash, environment, str(replicate), str(number)])
    return hashlib.sha256(content.encode()).hexdigest()[:32]
