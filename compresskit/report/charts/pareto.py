"""Quality against a cost: bubbles, whiskers, the frontier; who is dominated is grey and named so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from compresskit.report.axis import Axis, axis_over
from compresskit.report.figure import horizontal_axis, vertical_axis
from compresskit.report.svg import Drawing, shortened, text_width
from compresskit.report.trade import Point, Standing

_TOP, _BOTTOM = 34, 46
_LINE = 14


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
    drawing = Drawing(
        width, height, f"{quality} against {cost}: " + "; ".join(_spoken(p, found[p.name]) for p in points)
    )
    x = axis_over(_ends([point.cost for point in points]), left, width - right, margin=0.12)
    bounds = (height - _BOTTOM, _TOP) if higher_is_better else (_TOP, height - _BOTTOM)
    y = axis_over(_ends([point.quality for point in points]), *bounds, margin=0.14, log=False)
    arrow = "higher is better" if higher_is_better else "up is better: lower"
    vertical_axis(drawing, y, left, width - right, f"{quality} ({arrow})")
    horizontal_axis(drawing, x, _TOP, height - _BOTTOM, f"{cost} (less is better)")
    radius = _radii(points, 6 if narrow else 7, 16 if narrow else 22)
    _frontier(drawing, points, found, x, y, width - right)
    _ties(drawing, points, found, x, y)
    for point in points:
        _whiskers(drawing, point, x, y, found[point.name].state)
    places = {point.name: (x.at(point.cost.value), y.at(point.quality.value), radius[point.name]) for point in points}
    for point in sorted(points, key=lambda each: -radius[each.name]):
        px, py, r = places[point.name]
        state = found[point.name].state + (" base" if point.baseline else "")
        drawing.add("circle", title=describe(point), cx=px, cy=py, r=r, class_=f"dot {state}")
    _labels(drawing, points, found, places, (left + 2, _TOP - 6, width - 2, height - _BOTTOM - 2))
    return drawing


def _spoken(point: Point, standing: Standing) -> str:
    by = {"dominated": f"dominated by {standing.by}", "tied": f"tied with {standing.by}", "frontier": "on the frontier"}
    return f"{point.name} {by[standing.state]}"


def _ends(spans: Sequence) -> list[float]:  # type: ignore[type-arg]
    """Values and whiskers, but whiskers no further out than three times the range of the values."""
    values = [span.value for span in spans]
    low, high = min(values), max(values)
    room = 3 * (high - low) or abs(high) or 1.0
    return values + [
        bound for span in spans for bound in (span.low, span.high) if low - room <= bound <= high + room and bound > 0
    ]


def _radii(points: Sequence[Point], least: float, most: float) -> dict[str, float]:
    """Area in proportion to size, the largest has radius ``most``; without sizes all alike."""
    largest = max((point.size or 0.0 for point in points), default=0.0)
    if not largest:
        return {point.name: least for point in points}
    return {point.name: max(least * 0.6, most * math.sqrt((point.size or 0.0) / largest)) for point in points}


def _frontier(
    drawing: Drawing, points: Sequence[Point], found: Mapping[str, Standing], x: Axis, y: Axis, right: float
) -> None:
    """Steps: what is reached at a cost is reached at every higher one."""
    edge = sorted((x.at(p.cost.value), y.at(p.quality.value)) for p in points if found[p.name].state == "frontier")
    steps: list[tuple[float, float]] = []
    for px, py in edge:
        if steps:
            steps.append((px, steps[-1][1]))
        steps.append((px, py))
    if steps:
        drawing.path([*steps, (right, steps[-1][1])], "frontier-line")


def _ties(drawing: Drawing, points: Sequence[Point], found: Mapping[str, Standing], x: Axis, y: Axis) -> None:
    by_name = {point.name: point for point in points}
    for point in points:
        for name in found[point.name].ties:
            other = by_name[name]
            if point.name < name:
                ends = [(x.at(each.cost.value), y.at(each.quality.value)) for each in (point, other)]
                drawing.path(ends, "tie-line")


def _whiskers(drawing: Drawing, point: Point, x: Axis, y: Axis, state: str) -> None:
    px, py = x.at(point.cost.value), y.at(point.quality.value)
    class_ = f"whisker {state}"
    low, high = x.at(point.cost.low), x.at(point.cost.high)
    if high - low > 1:
        drawing.path([(low, py), (high, py)], class_)
        for end in (low, high):
            drawing.line(end, py - 3, end, py + 3, class_)
    bottom, top = y.at(point.quality.low), y.at(point.quality.high)
    if abs(bottom - top) > 1:
        drawing.path([(px, bottom), (px, top)], class_)
        for end in (bottom, top):
            drawing.line(px - 3, end, px + 3, end, class_)


def _labels(
    drawing: Drawing,
    points: Sequence[Point],
    found: Mapping[str, Standing],
    places: Mapping[str, tuple[float, float, float]],
    area: tuple[float, float, float, float],
) -> None:
    """Names beside the points where there is room, further off with a leader, else left to the table below."""
    taken = [(px - r * 0.7, py - r * 0.7, px + r * 0.7, py + r * 0.7) for px, py, r in places.values()]
    order = {"frontier": 0, "tied": 1, "dominated": 2}
    room = (area[2] - area[0]) * (0.42 if drawing.width < 500 else 0.3)
    for point in sorted(points, key=lambda each: (order[found[each.name].state], not each.baseline)):
        name = shortened(point.name, room)
        note = {"dominated": "dominated", "tied": "tied"}.get(found[point.name].state, "")
        width = max(text_width(name), text_width(note, 10.5))
        tall = 2 * _LINE if note else _LINE
        place = _place(places[point.name], width, tall, taken, area)
        if place is None:
            continue
        lx, ly, leader = place
        taken.append((lx, ly, lx + width, ly + tall))
        if leader:
            px, py, r = places[point.name]
            ex, ey = min(max(px, lx), lx + width), min(max(py, ly), ly + tall)
            if math.hypot(ex - px, ey - py) > r + 8:
                drawing.line(px, py, ex, ey, "leader")
        drawing.words(lx, ly + 11, name, "label" + (" faint" if note == "dominated" else ""))
        if note:
            drawing.words(lx, ly + 11 + _LINE - 1, note, "note")


def _place(
    at: tuple[float, float, float],
    width: float,
    height: float,
    taken: Sequence[tuple[float, float, float, float]],
    area: tuple[float, float, float, float],
) -> tuple[float, float, bool] | None:
    px, py, r = at
    for step in range(6):
        gap = 4 + 14 * step
        near = [
            (px + r + gap, py - height / 2),
            (px - r - gap - width, py - height / 2),
            (px - width / 2, py - r - gap - height),
            (px - width / 2, py + r + gap),
            (px + r * 0.7 + gap, py - r * 0.7 - gap - height / 2),
            (px + r * 0.7 + gap, py + r * 0.7 + gap - height / 2),
            (px - r * 0.7 - gap - width, py - r * 0.7 - gap - height / 2),
            (px - r * 0.7 - gap - width, py + r * 0.7 + gap - height / 2),
        ]
        for lx, ly in near:
            box = (lx, ly, lx + width, ly + height)
            inside = box[0] >= area[0] and box[1] >= area[1] and box[2] <= area[2] and box[3] <= area[3]
            if inside and not any(_overlap(box, other) for other in taken):
                return lx, ly, step > 0
    return None


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
