"""Block times over the run, one strip an arm: drift and throttling hit all strips at the same place."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from compresskit.report.axis import Axis
from compresskit.report.svg import Drawing, shortened, text_width

MOST_MARKS = 240


@dataclass(frozen=True)
class Strip:
    """One arm: for each of its slices (replicate, seconds since the start, median ms of the calls, throttled)."""

    name: str
    slices: tuple[tuple[int, float, float, bool], ...]

    @cached_property
    def median(self) -> float:
        """Of the slices' medians, ms."""
        return statistics.median(value for _, _, value, _ in self.slices)


def trace(strips: Sequence[Strip], width: int) -> Drawing:
    """Time runs to the right; up is slower, each strip in shares of its own median, all on one scale."""
    narrow = width < 500
    left = 8.0 if narrow else min(200.0, max(90.0, max(text_width(strip.name) for strip in strips) + 16))
    right, gap, tall = 52.0, (24.0 if narrow else 10.0), 46.0
    pitch = tall + gap
    bottom = 12 + pitch * len(strips)
    drawing = Drawing(
        width, bottom + 40, "Median time of each slice over the run, for " + ", ".join(s.name for s in strips)
    )
    last = max(when for strip in strips for _, when, _, _ in strip.slices)
    first = min(when for strip in strips for _, when, _, _ in strip.slices)
    x = Axis(first, max(last, first + 1e-9), left, width - right)
    reach = _reach(strips)
    for index, strip in enumerate(strips):
        top = 12 + pitch * index + (14 if narrow else 0)
        y = Axis(1 / reach, reach, top + tall - (14 if narrow else 0), top, log=True)
        _strip(drawing, strip, x, y, left, right, scale=index == 0)
    for tick in x.ticks(4 if narrow else 8):
        drawing.words(x.at(tick), bottom + 14, f"{tick:g}", "tick", anchor="middle")
    drawing.line(left, bottom, width - right, bottom, "axis")
    drawing.words((left + width - right) / 2, bottom + 32, "seconds since the run began", "name", anchor="middle")
    return drawing


def _reach(strips: Sequence[Strip]) -> float:
    """The factor at the strips' upper edge: what holds 98 % of the slices, at least 1.1, at most 4."""
    factors = sorted(
        max(value / strip.median, strip.median / value) for strip in strips for _, _, value, _ in strip.slices
    )
    return min(4.0, max(1.1, 1.05 * factors[int(0.98 * (len(factors) - 1))]))


def _strip(drawing: Drawing, strip: Strip, x: Axis, y: Axis, left: float, right: float, *, scale: bool) -> None:
    narrow = drawing.width < 500
    top, bottom = y.end, y.start
    drawing.box(left, top, drawing.width - right - left, bottom - top, "strip")
    drawing.line(left, y.at(1.0), drawing.width - right, y.at(1.0), "grid")
    if narrow:
        drawing.words(left, top - 5, shortened(strip.name, drawing.width - 130), "label")
        drawing.words(drawing.width - right, top - 5, f"median {strip.median:.3g} ms", "tick", anchor="end")
    else:
        drawing.words(left - 12, y.at(1.0), shortened(strip.name, left - 16), "label", anchor="end")
        drawing.words(left - 12, y.at(1.0) + 14, f"{strip.median:.3g} ms", "tick", anchor="end")
    if scale:
        edge = drawing.width - right + 6
        drawing.words(edge, top + 9, f"{y.high:.2f}×", "tick")
        drawing.words(edge, bottom - 1, f"{y.low:.2f}×", "tick")
    for when, value, throttled in _thinned(strip):
        factor = value / strip.median
        outside = factor > y.high or factor < y.low
        class_ = "slice" + (" throttled" if throttled else "") + (" outside" if outside else "")
        drawing.add("circle", cx=x.at(when), cy=y.at(factor), r=2.2 if not outside else 2.8, class_=class_)


def _thinned(strip: Strip) -> list[tuple[float, float, bool]]:
    """At most `MOST_MARKS`: of each run of neighbours the slowest, so that no spike is lost."""
    ordered = sorted((when, value, throttled) for _, when, value, throttled in strip.slices)
    size = -(-len(ordered) // MOST_MARKS)
    groups = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return [max(group, key=lambda each: each[1]) for group in groups]
