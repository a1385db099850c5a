"""Where in a recipe's text a value stands, and how an error shows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Path = tuple[str | int, ...]

_LINE_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_WIDEST = 100


@dataclass(frozen=True)
class Place:
    """A stretch of one line; ``line`` and ``column`` count from 0."""

    line: int
    column: int
    width: int = 1


@dataclass(frozen=True)
class Text:
    """The text of a recipe, line by line, for excerpts. ``name`` is the file's, or ``recipe``."""

    name: str
    lines: tuple[str, ...] = ()

    @staticmethod
    def of(name: str, text: str) -> Text:
        """Split ``text`` where YAML sees line breaks."""
        return Text(name, tuple(_LINE_BREAK.split(text)))

    def where(self, place: Place) -> str:
        """``file:line:column``, counted from 1."""
        return f"{self.name}:{place.line + 1}:{place.column + 1}"

    def excerpt(self, place: Place) -> str:
        """The line of ``place`` with carets below, cut to a readable width, control characters blanked."""
        if place.line >= len(self.lines):
            return ""
        line = _UNPRINTABLE.sub(" ", self.lines[place.line])
        cut = max(0, place.column - _WIDEST // 2) if len(line) > _WIDEST else 0
        shown = line[cut : cut + _WIDEST]
        carets = max(1, min(place.width, len(shown) - (place.column - cut)))
        number = str(place.line + 1)
        margin = " " * len(number)
        return f" {margin} |\n {number} | {shown}\n {margin} | {' ' * (place.column - cut)}{'^' * carets}"


@dataclass
class Document:
    """Parsed data, and where each key and value stands. ``keys`` and ``values`` are empty for Python data."""

    data: Any
    text: Text
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)

    def locate(self, path: Path, *, key: bool = False) -> tuple[str, str]:
        """(where, excerpt) of the value at ``path``, of its key if ``key``; of the nearest part that has a place."""
        for end in range(len(path), -1, -1):
            tables = (self.keys, self.values) if key or end < len(path) else (self.values, self.keys)
            for table in tables:
                place = table.get(path[:end])
                if place is not None:
                    return self.text.where(place), self.text.excerpt(place)
        return f"{self.text.name}: {dotted(path)}" if path else self.text.name, ""


def dotted(path: Sequence[str | int]) -> str:
    """``steps[1].pruning.ffn.keep``."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")
