"""Which candidates are worth having: the frontier, who is dominated, and who can't be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

State = Literal["frontier", "tied", "dominated"]


@dataclass(frozen=True)
class Span:
    """A figure with its interval; without one, ``low`` and ``high`` are the value."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, ci: tuple[float, float] | None) -> Span:
        """The interval always holds the value, whatever the record says."""
        low, high = ci or (value, value)
        return cls(value, min(low, value), max(high, value))

    def overlaps(self, other: Span) -> bool:
        """The two can't be told apart."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Point:
    """A candidate: ``cost`` (less is better) against ``quality``.

    Args:
        size: bytes; its bubble.
        cost_ratio, quality_change: against the baseline, measured in pairs: narrower intervals, by which two candidates
            are told apart where both have them. The baseline's are 1 and 0.
    """

    name: str
    cost: Span
    quality: Span
    size: float | None = None
    baseline: bool = False
    cost_ratio: Span | None = None
    quality_change: Span | None = None

    def same_cost(self, other: Point) -> bool:
        """The costs can't be told apart."""
        if self.cost_ratio is not None and other.cost_ratio is not None:
            return self.cost_ratio.overlaps(other.cost_ratio)
        return self.cost.overlaps(other.cost)

    def same_quality(self, other: Point) -> bool:
        """The qualities can't be told apart."""
        if self.quality_change is not None and other.quality_change is not None:
            return self.quality_change.overlaps(other.quality_change)
        return self.quality.overlaps(other.quality)


@dataclass(frozen=True)
class Standing:
    """Where a candidate stands.

    Args:
        state: frontier, none is at least as good in both figures; dominated, another one is, and clearly better in one
            (the intervals don't overlap); tied, another one is, but by less than the intervals.
        by: who dominates it, or whom it is tied with.
        ties: those whose intervals overlap its own in both figures.
    """

    state: State
    by: str = ""
    ties: tuple[str, ...] = ()


def standings(points: Sequence[Point], *, higher_is_better: bool = True, slack: float = 0.0) -> dict[str, Standing]:
    """The standing of each of ``points`` by name. Points of equal figures are all on the frontier.

    Args:
        slack: costs within this share of each other count as overlapping.
    """
    wider = [replace(point, cost=_widened(point.cost, slack / 2)) for point in points]
    return {point.name: _standing(point, wider, 1.0 if higher_is_better else -1.0) for point in wider}


def _widened(span: Span, share: float) -> Span:
    return Span(span.value, span.low * (1 - share), span.high * (1 + share))


def _standing(point: Point, points: Sequence[Point], sign: float) -> Standing:
    others = [other for other in points if other is not point]
    ties = tuple(other.name for other in others if point.same_cost(other) and point.same_quality(other))
    better = [other for other in others if _at_least_as_good(other, point, sign)]
    if not better:
        return Standing("frontier", ties=ties)
    clearly = [other for other in better if not other.same_cost(point) or not other.same_quality(point)]
    if clearly:
        # The one that is furthest ahead in cost is the one to name.
        return Standing("dominated", min(clearly, key=lambda other: (other.cost.value, other.name)).name, ties)
    return Standing("tied", min(better, key=lambda other: (other.cost.value, other.name)).name, ties)


def _at_least_as_good(other: Point, point: Point, sign: float) -> bool:
    cost, quality = point.cost.value - other.cost.value, sign * (other.quality.value - point.quality.value)
    return cost >= 0 and quality >= 0 and (cost > 0 or quality > 0)
