"""Where bytes, multiplications and milliseconds are: a group of bars for each part of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compresskit.report.svg import Drawing, shortened, text_width


@dataclass(frozen=True)
class Share:
    """One part: its name, and for each measure (share of the whole 0..1, the figure as text) or None."""

    name: str
    inner: bool
    shares: tuple[tuple[float, str] | None, ...]


def profile_bars(rows: Sequence[Share], measures: Sequence[str], width: int) -> Drawing:
    """A column a measure; bars of one column share a scale, up to its largest part."""
    narrow = width < 500
    left = 8.0 if narrow else min(230.0, max(text_width(row.name) + 14 * row.inner for row in rows) + 16)
    row_height = 42 if narrow else 24
    top = 26
    drawing = Drawing(width, top + row_height * len(rows) + 8, "Shares of " + ", ".join(measures) + " by part")
    column = (width - left - 8) / len(measures)
    most = [
        max((row.shares[index][0] for row in rows if row.shares[index] is not None), default=0.0) or 1.0  # type: ignore[index]
        for index in range(len(measures))
    ]
    for index, name in enumerate(measures):
        drawing.words(left + column * index, 14, name, "name")
    for number, row in enumerate(rows):
        y = top + row_height * number
        indent = 12 if row.inner else 0
        if narrow:
            drawing.words(
                left + indent, y + 12, shortened(row.name, width - 30), "label" + (" faint" if row.inner else "")
            )
        else:
            drawing.words(
                indent, y + 15, shortened(row.name, left - indent - 8), "label" + (" faint" if row.inner else "")
            )
        for index, entry in enumerate(row.shares):
            start = left + column * index
            _bar(drawing, entry, start, y + (18 if narrow else 4), column - 10, most[index], index, row.inner)
    return drawing


def _bar(
    drawing: Drawing,
    entry: tuple[float, str] | None,
    x: float,
    y: float,
    room: float,
    most: float,
    index: int,
    inner: bool,
) -> None:
    if entry is None:
        drawing.words(x, y + 11, "–", "tick")
        return
    share, figure = entry
    percent = f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %"
    length = max(0.0, (room - 44) * share / most)
    drawing.box(x, y, length, 15, f"bar measure{index}" + (" inner" if inner else ""), title=figure)
    drawing.words(x + length + 4, y + 12, percent, "tick")
