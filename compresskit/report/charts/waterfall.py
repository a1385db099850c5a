"""What each step of the recipe took off the size."""

from __future__ import annotations

from collections.abc import Sequence

from compresskit.report.axis import Axis
from compresskit.report.numbers import held
from compresskit.report.svg import Drawing, shortened, text_width


def waterfall(levels: Sequence[tuple[str, float]], width: int) -> Drawing:
    """``levels``: (name, bytes) of the source, after each step, and of the result. One row each."""
    narrow = width < 500
    row_height = 44 if narrow else 30
    left = 8.0 if narrow else min(300.0, max(text_width(name) for name, _ in levels) + 20)
    right = 12.0 if narrow else 150.0
    spoken = "; ".join(f"{name} {held(size)}" for name, size in levels)
    drawing = Drawing(width, 10 + row_height * len(levels) + 6, f"Size after each step: {spoken}")
    most = max(size for _, size in levels) or 1.0
    x = Axis(0.0, most, left, width - right)
    drawing.line(left, 6, left, drawing.height - 4, "axis")
    previous = levels[0][1]
    for index, (name, size) in enumerate(levels):
        top = 10 + row_height * index
        y = top + (18 if narrow else 4)
        tall = 18 if narrow else 20
        whole = index in (0, len(levels) - 1)
        low, high = sorted((size, previous))
        change = size - previous
        if whole:
            drawing.box(left, y, x.at(size) - left, tall, "bar whole", title=f"{name}: {held(size)}")
        else:
            drawing.box(left, y, x.at(low) - left, tall, "bar rest")
            kind = "bar saved" if change <= 0 else "bar added"
            drawing.box(x.at(low), y, x.at(high) - x.at(low), tall, kind, title=f"{name}: {_change(change)}")
        shown = held(size) if whole else f"{_change(change)} → {held(size)}" if round(change) else held(size)
        if narrow:
            drawing.words(left, top + 12, shortened(name, width - 24 - text_width(shown)), "label")
            drawing.words(width - right, top + 12, shown, "figure", anchor="end")
        else:
            drawing.words(left - 10, y + 14, shortened(name, left - 14), "label", anchor="end")
            drawing.words(x.at(max(size, previous)) + 8, y + 14, shown, "figure")
        previous = size
    return drawing


def _change(change: float) -> str:
    if not round(change):
        return "no change"
    sign = "−" if change <= 0 else "+"
    return f"{sign}{held(abs(change))}"
