"""Lines: precision against recall, and cost against length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compresskit.report.axis import Axis, axis_over
from compresskit.report.figure import horizontal_axis, vertical_axis
from compresskit.report.svg import Drawing, shortened

LINES = 6


@dataclass(frozen=True)
class Curve:
    """A named line through points in order of x."""

    name: str
    points: tuple[tuple[float, float], ...]


def precision_recall(curves: Sequence[Curve], width: int) -> Drawing:
    """Both axes from 0 to 1. At most `LINES` curves tell each other apart by stroke."""
    drawing, x, y = _frame(curves, width, Axis(0.0, 1.0, 46, width - 14), (0.0, 1.0, False), "recall", "precision")
    return _drawn(drawing, curves, x, y)


def cost_by_length(curves: Sequence[Curve], width: int, *, cost: str) -> Drawing:
    """Both axes logarithmic: a power law is a straight line, its slope the exponent."""
    lengths = [point[0] for curve in curves for point in curve.points]
    costs = [point[1] for curve in curves for point in curve.points]
    across = axis_over(lengths, 50, width - 14, log=True)
    up = axis_over(costs, 0, 1, log=True)
    measured = sorted(set(lengths))
    ticks = measured if len(measured) <= (6 if width < 500 else 12) else None
    drawing, x, y = _frame(curves, width, across, (up.low, up.high, True), "tokens of a row", cost, ticks)
    return _drawn(drawing, curves, x, y)


def _frame(
    curves: Sequence[Curve],
    width: int,
    x: Axis,
    y_range: tuple[float, float, bool],
    x_name: str,
    y_name: str,
    ticks: Sequence[float] | None = None,
) -> tuple[Drawing, Axis, Axis]:
    per_line = max(1, int((width - 20) // 190))
    legend = 18 * -(-min(len(curves), LINES) // per_line)
    top = 34
    bottom = 260 if width < 500 else 320
    drawing = Drawing(width, bottom + 50 + legend, f"{y_name} by {x_name}: " + ", ".join(c.name for c in curves))
    low, high, log = y_range
    y = Axis(low, high, bottom, top, log=log)
    vertical_axis(drawing, y, x.start, x.end, y_name)
    horizontal_axis(drawing, x, top, bottom, x_name, ticks=ticks)
    for index, curve in enumerate(curves[:LINES]):
        cx, cy = 10 + 190 * (index % per_line), bottom + 56 + 18 * (index // per_line)
        drawing.line(cx, cy - 4, cx + 26, cy - 4, f"curve line{index}")
        drawing.words(cx + 32, cy, shortened(curve.name, 150), "label")
    return drawing, x, y


def _drawn(drawing: Drawing, curves: Sequence[Curve], x: Axis, y: Axis) -> Drawing:
    for index, curve in enumerate(curves[:LINES]):
        places = [(x.at(a), y.at(b)) for a, b in curve.points]
        drawing.path(places, f"curve line{index}")
        if len(places) <= 12:
            for (px, py), (a, b) in zip(places, curve.points, strict=True):
                drawing.add(
                    "circle", title=f"{curve.name}: {a:g}, {b:.4g}", cx=px, cy=py, r=3, class_=f"knot line{index}"
                )
    return drawing
