"""Quality against a cost: bubbles, whiskers, the frontier; who is dominated is grey and named so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from compresskit.report.axis import Axis, axis_over
from compresskit.report.charts.labels import Box, Label, legend_below, legend_height, place_labels
from compresskit.report.figure import horizontal_axis, vertical_axis
from compresskit.report.svg import Drawing
from compresskit.report.trade import Point, Span, Standing

_TOP, _BOTTOM = 34, 46
MOST_NAMES, MOST_NAMES_NARROW = 16, 6
_LONGEST = 25
_Piece = tuple[tuple[float, float], tuple[float, float]]


def pareto(
    points: Sequence[Point],
    found: Mapping[str, Standing],
    width: int,
    *,
    cost: str,
    quality: str,
    higher_is_better: bool = True,
    describe: Callable[[Point], str],
) -> Drawing:
    """Better is always up and left.

    Args:
        points: at least one, with finite figures; costs above 0.
        found: the standing of each by name.
        cost, quality: names of the axes, with units.
        describe: what a pointer on a point shows.
    """
    narrow = width < 500
    left, right = (46, 8) if narrow else (58, 16)
    height = 320 if narrow else 380
    keyed = len(points) > (MOST_NAMES_NARROW if narrow else MOST_NAMES)
    spoken = "; ".join(_spoken(point, found[point.name]) for point in points)
    legend = legend_height(len(points), width) if keyed else 0
    drawing = Drawing(width, height + legend, f"{quality} against {cost}: {spoken}")
    x = axis_over(_ends([point.cost for point in points]), left, width - right, margin=0.12)
    bounds = (height - _BOTTOM, _TOP) if higher_is_better else (_TOP, height - _BOTTOM)
    y = axis_over(_ends([point.quality for point in points]), *bounds, margin=0.14, log=False)
    arrow = "higher is better" if higher_is_better else "up is better: lower"
    vertical_axis(drawing, y, left, width - right, f"{quality} ({arrow})")
    horizontal_axis(drawing, x, _TOP, height - _BOTTOM, f"{cost} (less is better)")
    radius = _radii(points, 6 if narrow else 7, 16 if narrow else 22)
    drawing.path(_steps(points, found, x, y), "frontier-line")
    _ties(drawing, points, found, x, y)
    for point in points:
        _whiskers(drawing, point, x, y, found[point.name].state)
    places = {point.name: (x.at(point.cost.value), y.at(point.quality.value), radius[point.name]) for point in points}
    for point in sorted(points, key=lambda each: -radius[each.name]):
        px, py, r = places[point.name]
        state = found[point.name].state + (" base" if point.baseline else "")
        drawing.add("circle", title=describe(point), cx=px, cy=py, r=r, class_=f"dot {state}")
    lines = [_around(piece) for point in points for piece in _whisker_lines(point, x, y)]
    steps = _steps(points, found, x, y)
    lines += [_around(piece) for piece in pairwise(steps)]
    area = (left + 2, _TOP - 6, width - 2, height - _BOTTOM - 2)
    labels = [_label(point, found[point.name], number if keyed else None) for number, point in enumerate(points, 1)]
    place_labels(drawing, labels, places, lines, area)
    if keyed:
        legend_below(drawing, [(point.name, _note(found[point.name])) for point in points], height)
    return drawing


def _label(point: Point, standing: Standing, number: int | None) -> Label:
    """Those on the frontier are placed first, the baseline before others."""
    rank = 2 * ("frontier", "tied", "dominated").index(standing.state) + (not point.baseline)
    if number is not None:
        return Label(point.name, str(number), "", rank)
    return Label(point.name, point.name, _note(standing), rank)


def _note(standing: Standing) -> str:
    return "" if standing.state == "frontier" else standing.state


def _spoken(point: Point, standing: Standing) -> str:
    by = {"dominated": f"dominated by {standing.by}", "tied": f"tied with {standing.by}", "frontier": "on the frontier"}
    return f"{point.name} {by[standing.state]}"


def _ends(spans: Sequence[Span]) -> list[float]:
    """Values and whiskers; but a whisker far longer than the values are apart must not press them into one spot."""
    values = [span.value for span in spans]
    low, high = min(values), max(values)
    room = _LONGEST * (high - low) or abs(high) or 1.0
    return values + [
        bound for span in spans for bound in (span.low, span.high) if low - room <= bound <= high + room and bound > 0
    ]


def _radii(points: Sequence[Point], least: float, most: float) -> dict[str, float]:
    """Area in proportion to size, the largest has radius ``most``; without sizes all alike."""
    largest = max((point.size or 0.0 for point in points), default=0.0)
    if not largest:
        return {point.name: least for point in points}
    return {point.name: max(least * 0.6, most * math.sqrt((point.size or 0.0) / largest)) for point in points}


def _steps(points: Sequence[Point], found: Mapping[str, Standing], x: Axis, y: Axis) -> list[tuple[float, float]]:
    """The frontier: what is reached at a cost is reached at every higher one."""
    edge = sorted((x.at(p.cost.value), y.at(p.quality.value)) for p in points if found[p.name].state == "frontier")
    steps: list[tuple[float, float]] = []
    for px, py in edge:
        if steps:
            steps.append((px, steps[-1][1]))
        steps.append((px, py))
    return steps


def _ties(drawing: Drawing, points: Sequence[Point], found: Mapping[str, Standing], x: Axis, y: Axis) -> None:
    by_name = {point.name: point for point in points}
    for point in points:
        for name in found[point.name].ties:
            other = by_name[name]
            if point.name < name:
                ends = [(x.at(each.cost.value), y.at(each.quality.value)) for each in (point, other)]
                drawing.path(ends, "tie-line")


def _whisker_lines(point: Point, x: Axis, y: Axis) -> list[_Piece]:
    px, py = x.at(point.cost.value), y.at(point.quality.value)
    across = ((x.at(point.cost.low), py), (x.at(point.cost.high), py))
    upright = ((px, y.at(point.quality.low)), (px, y.at(point.quality.high)))
    return [piece for piece in (across, upright) if math.dist(*piece) > 1]


def _whiskers(drawing: Drawing, point: Point, x: Axis, y: Axis, state: str) -> None:
    for start, end in _whisker_lines(point, x, y):
        drawing.path([start, end], f"whisker {state}")
        upright = start[0] == end[0]
        axis, span, (dx, dy) = (y, point.quality, (3, 0)) if upright else (x, point.cost, (0, 3))
        for (ex, ey), bound in ((start, span.low), (end, span.high)):
            if axis.low <= bound <= axis.high:  # what goes on outside has no end to mark
                drawing.line(ex - dx, ey - dy, ex + dx, ey + dy, f"whisker {state}")


def _around(piece: _Piece) -> Box:
    (x1, y1), (x2, y2) = piece
    return min(x1, x2) - 2, min(y1, y2) - 2, max(x1, x2) + 2, max(y1, y2) + 2
