"""Ratios with their intervals, one row a comparison, over the band that the baseline against itself gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from compresskit.report.axis import Axis, axis_over
from compresskit.report.figure import horizontal_axis
from compresskit.report.svg import Drawing, shortened, text_width


@dataclass(frozen=True)
class Ratio:
    """One row.

    Args:
        name, detail: which arm, in which cell.
        value, ci: time over the baseline's, and its interval.
        guards: name -> ratio of a second estimate.
    """

    name: str
    detail: str
    value: float
    ci: tuple[float, float] | None
    verdict: str
    guards: dict[str, float] = field(default_factory=dict)
    control: bool = False


def forest(rows: Sequence[Ratio], band: tuple[float, float] | None, delta: float, width: int) -> Drawing:
    """``band``: the A/A interval. ``delta``: half-width of what counts as the same."""
    narrow = width < 500
    row_height = 46 if narrow else 32
    names = max(text_width(row.name) for row in rows)
    left = 10 if narrow else min(250.0, max(110.0, names + 16))
    right = 12 if narrow else 104
    top = 34
    bottom = top + row_height * len(rows) + 4
    label = "Time over the baseline's: " + "; ".join(f"{r.name} {r.value:.3g} {r.verdict}" for r in rows[:20])
    drawing = Drawing(width, bottom + 44, label)
    bounds = [bound for row in rows for bound in (*(row.ci or ()), row.value, *row.guards.values())]
    # A bound that is far outside must not press all others into one spot.
    middle = [bound for bound in (*bounds, *(band or ())) if 0.02 <= bound <= 50] or [1.0]
    x = axis_over([*middle, 1 - delta, 1 + delta], left, width - right, margin=0.06, log=True)
    if band is not None:
        low, high = x.at(band[0]), x.at(band[1])
        drawing.box(low, top, high - low, bottom - top, "band", title=f"A/A: {band[0]:.3f} to {band[1]:.3f}")
        drawing.words(
            min(max((low + high) / 2, left + 44), width - right - 44), top - 6, "A/A noise", "note", anchor="middle"
        )
    horizontal_axis(drawing, x, top, bottom, "time over the baseline's (below 1: faster)", "×")
    drawing.line(x.at(1.0), top, x.at(1.0), bottom, "one")
    for index, row in enumerate(rows):
        _row(drawing, row, x, top + row_height * index, row_height, left, right)
    return drawing


def _row(drawing: Drawing, row: Ratio, x: Axis, top: float, height: float, left: float, right: float) -> None:
    narrow = drawing.width < 500
    drawing.line(left if narrow else 0, top + height, drawing.width - (right if narrow else 0), top + height, "grid")
    y = top + height / 2 if not narrow else top + 29
    state = {"FASTER": "faster", "SLOWER": "slower"}.get(row.verdict, "same")
    if narrow:
        verdict = row.verdict.lower()
        room = drawing.width - 20 - text_width(verdict) - 12
        drawing.words(left, top + 16, shortened(row.name, room), "label")
        drawing.words(drawing.width - 10, top + 16, verdict, f"verdict {state}", anchor="end")
    else:
        drawing.words(left - 12, y + 4, shortened(row.name, left - 16), "label", anchor="end")
        drawing.words(drawing.width - right + 14, y + 4, row.verdict.lower(), f"verdict {state}")
    span = f" [{row.ci[0]:.3f}, {row.ci[1]:.3f}]" if row.ci else ""
    title = f"{row.name}, {row.detail}: {row.value:.3f}{span} {row.verdict}"
    if row.ci:
        low, high = x.at(row.ci[0]), x.at(row.ci[1])
        drawing.path([(low, y), (high, y)], f"whisker {state}")
        for end in (low, high):
            drawing.line(end, y - 4, end, y + 4, f"whisker {state}")
    for guard, value in sorted(row.guards.items()):
        at = x.at(value)
        drawing.add("path", title=f"{guard}: {value:.3f}", d=f"M{at:.1f} {y + 6:.1f} l3.5 6 h-7 Z", class_="guard")
    drawing.add(
        "circle",
        title=title,
        cx=x.at(row.value),
        cy=y,
        r=5,
        class_=f"dot {state}" + (" control" if row.control else ""),
    )
