"""Names of points: beside them, off the lines and off each other; numbers with a legend where there are too many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compresskit.report.svg import Drawing, shortened, text_width

Box = tuple[float, float, float, float]
_LINE = 14
_LEGEND_LINE, _COLUMN = 17, 250


@dataclass(frozen=True)
class Label:
    """What stands beside a point: a line of text and a note below it; lower ranks choose their place first."""

    key: str
    text: str
    note: str
    rank: int


def place_labels(
    drawing: Drawing,
    labels: Sequence[Label],
    places: Mapping[str, tuple[float, float, float]],
    lines: Sequence[Box],
    area: Box,
) -> None:
    """Beside the points, off the lines where there is room; further off with a leader; else only in the table.

    Args:
        places: key -> x, y and radius of the points.
        lines: boxes around what should stay uncovered.
        area: what labels must not leave.
    """
    taken = [(px - r * 0.7, py - r * 0.7, px + r * 0.7, py + r * 0.7) for px, py, r in places.values()]
    room = (area[2] - area[0]) * (0.42 if drawing.width < 500 else 0.3)
    for label in sorted(labels, key=lambda each: each.rank):
        name = shortened(label.text, room)
        width = max(text_width(name), text_width(label.note, 10.5))
        tall = 2 * _LINE if label.note else _LINE
        at = places[label.key]
        others = [place for key, place in places.items() if key != label.key]
        place = _place(at, width, tall, [*taken, *lines], area, others) or _place(at, width, tall, taken, area, [])
        if place is None:
            continue
        lx, ly, leader = place
        taken.append((lx, ly, lx + width, ly + tall))
        if leader:
            ex, ey = min(max(at[0], lx), lx + width), min(max(at[1], ly), ly + tall)
            if math.hypot(ex - at[0], ey - at[1]) > at[2] + 8:
                drawing.line(at[0], at[1], ex, ey, "leader")
        drawing.words(lx, ly + 11, name, "label" + (" faint" if label.note == "dominated" else ""))
        if label.note:
            drawing.words(lx, ly + 11 + _LINE - 1, label.note, "note")


def legend_height(count: int, width: float) -> float:
    """Pixels that the legend of ``count`` numbered points takes."""
    return 8.0 + _LEGEND_LINE * -(-count // _columns(width))


def legend_below(drawing: Drawing, names: Sequence[tuple[str, str]], top: float) -> None:
    """``1 name`` in columns, with the note in italics, below ``top``."""
    columns = _columns(drawing.width)
    pitch = (drawing.width - 8) / columns
    for index, (name, note) in enumerate(names):
        x, y = 4 + pitch * (index % columns), top + 12 + _LEGEND_LINE * (index // columns)
        noted = text_width(note, 10.5) + 6 if note else 0.0
        shown = shortened(f"{index + 1}  {name}", pitch - noted - 6)
        drawing.words(x, y, shown, "label" + (" faint" if note == "dominated" else ""))
        if note:
            drawing.words(x + pitch - 8, y, note, "note", anchor="end")


def _columns(width: float) -> int:
    return max(1, int(width // _COLUMN))


def _place(
    at: tuple[float, float, float],
    width: float,
    height: float,
    taken: Sequence[Box],
    area: Box,
    others: Sequence[tuple[float, float, float]],
) -> tuple[float, float, bool] | None:
    """Left, top, and whether it is far off; nearer to its own dot than to any of ``others``."""
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
            mine = _gap(box, at)
            if inside and not any(_overlap(box, o) for o in taken) and all(_gap(box, o) > mine + 2 for o in others):
                return lx, ly, step > 0
    return None


def _gap(box: Box, dot: tuple[float, float, float]) -> float:
    """Pixels between a box and the edge of a dot."""
    dx = max(box[0] - dot[0], 0.0, dot[0] - box[2])
    dy = max(box[1] - dot[1], 0.0, dot[1] - box[3])
    return math.hypot(dx, dy) - dot[2]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
