"""A chart in two sizes: one for a desk or paper, one for a telephone; the style sheet shows the one that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from compresskit.report.axis import Axis, tick_label
from compresskit.report.svg import Drawing

WIDE = 760
NARROW = 350


def figure(draw: Callable[[int], Drawing]) -> Markup:
    """``draw`` at both widths. A width below 500 means the narrow form."""
    wide, narrow = draw(WIDE).markup(), draw(NARROW).markup()
    return Markup('<div class="wide">') + wide + Markup('</div><div class="narrow">') + narrow + Markup("</div>")


def horizontal_axis(
    drawing: Drawing,
    axis: Axis,
    top: float,
    bottom: float,
    label: str,
    unit: str = "",
    ticks: Sequence[float] | None = None,
) -> None:
    """Grid lines, ticks and the axis' name below; needs 38 pixels under ``bottom``."""
    ticks = ticks or axis.ticks(4 if drawing.width < 500 else 8)
    for tick in ticks:
        x = axis.at(tick)
        drawing.line(x, top, x, bottom, "grid")
        drawing.words(x, bottom + 16, tick_label(tick, ticks) + unit, "tick", anchor="middle")
    drawing.line(axis.start, bottom, axis.end, bottom, "axis")
    drawing.words((axis.start + axis.end) / 2, bottom + 34, label, "name", anchor="middle")


def vertical_axis(drawing: Drawing, axis: Axis, left: float, right: float, label: str, unit: str = "") -> None:
    """Grid lines and ticks; the axis' name stands above its upper end, upright."""
    ticks = axis.ticks(5)
    for tick in ticks:
        y = axis.at(tick)
        drawing.line(left, y, right, y, "grid")
        drawing.words(left - 8, y + 4, tick_label(tick, ticks) + unit, "tick", anchor="end")
    drawing.line(left, axis.start, left, axis.end, "axis")
    drawing.words(4, min(axis.start, axis.end) - 12, label, "name")
