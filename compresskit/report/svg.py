"""Inline SVG, written by hand: colours come from the page's style sheet, so that one drawing serves light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

FONT = 12
_EM = 0.58


class Drawing:
    """An SVG element in the making. All text and attributes are escaped; no ids, no styles, no scripts.

    Args:
        width, height: of the view box, in pixels at full size.
        label: what is seen, for people who don't see it.
    """

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width, self.height, self.label = width, height, label
        self._parts: list[str] = []

    def add(self, tag: str, text: str | None = None, *, title: str = "", **attributes: object) -> None:
        """One element. ``title`` is what a pointer on it shows; ``class_`` is the class."""
        inner = f"<title>{escape(title)}</title>" if title else ""
        inner += str(escape(text)) if text is not None else ""
        self._parts.append(f"<{tag}{_attributes(attributes)}>{inner}</{tag}>")

    def line(self, x1: float, y1: float, x2: float, y2: float, class_: str) -> None:
        """A straight line."""
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)

    def box(self, x: float, y: float, width: float, height: float, class_: str, *, title: str = "") -> None:
        """A rectangle; a negative or vanishing extent is drawn as a hairline."""
        shape: dict[str, Any] = {
            "x": x,
            "y": y,
            "width": max(width, 0.75),
            "height": max(height, 0.75),
            "class_": class_,
        }
        self.add("rect", title=title, **shape)

    def words(self, x: float, y: float, text: str, class_: str = "", *, anchor: str = "start") -> None:
        """A line of text with its baseline at ``y``."""
        self.add("text", text, x=x, y=y, class_=class_ or None, text_anchor=anchor if anchor != "start" else None)

    def path(self, points: Sequence[tuple[float, float]], class_: str, *, close: bool = False) -> None:
        """Straight pieces through ``points``."""
        if points:
            steps = " ".join(f"{'L' if index else 'M'}{_short(x)} {_short(y)}" for index, (x, y) in enumerate(points))
            self.add("path", d=steps + (" Z" if close else ""), class_=class_)

    def markup(self) -> Markup:
        """The element, safe to put into a page."""
        head = (
            f'<svg viewBox="0 0 {_short(self.width)} {_short(self.height)}" role="img" '
            f'aria-label="{escape(self.label)}">'
        )
        return Markup(head + "".join(self._parts) + "</svg>")  # every part was escaped when it was added


def text_width(text: str, size: float = FONT) -> float:
    """About how many pixels ``text`` takes; on the safe side for system fonts."""
    return sum(1.0 if ord(char) > 0x2E80 else _EM for char in text) * size


def shortened(text: str, width: float, size: float = FONT) -> str:
    """``text``, with its middle left out where it is wider than ``width``: names differ at both ends."""
    room = max(1, int(width / (_EM * size)))
    if len(text) <= room:
        return text
    if room < 5:
        return text[: max(1, room - 1)] + "…"
    tail = (room - 1) // 2
    return f"{text[: room - 1 - tail]}…{text[-tail:]}"


def _attributes(attributes: dict[str, object]) -> str:
    written = []
    for name, value in attributes.items():
        if value is None:
            continue
        shown = _short(value) if isinstance(value, int | float) else str(escape(str(value)))
        written.append(f' {name.rstrip("_").replace("_", "-")}="{shown}"')
    return "".join(written)


def _short(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"
