"""What a page is made of: sections with a chart, tables and notes. Plain data; the template escapes all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from compresskit.report.foreign import text


@dataclass(frozen=True)
class Cell:
    """A table's cell.

    Args:
        text: what it says.
        kind: text, number, code, or a verdict's class: faster, slower, same, unsure, faint.
        title: what a pointer on it shows.
    """

    text: str
    kind: str = "text"
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under named columns; numbers are set right.

    Args:
        closed: behind a line that opens it.
        cards: on a telephone each row is a card, with the columns' names beside the figures.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    closed: bool = False
    cards: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, a sentence that says how to read it, a chart, tables, notes, and a block of plain text."""

    title: str
    lead: str = ""
    chart: Markup | None = None
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    verbatim: str = ""


@dataclass(frozen=True)
class Download:
    """A file inside the page: ``href`` is a data: address."""

    name: str
    href: str
    note: str


@dataclass(frozen=True)
class Part:
    """One record's share of the page."""

    title: str
    subtitle: str
    headline: str
    warnings: Sequence[str]
    sections: Sequence[Section]
    downloads: Sequence[Download] = field(default_factory=tuple)


def numbers(*texts: str) -> list[Cell]:
    """Cells of figures."""
    return [Cell(text(each), "number") for each in texts]


def plain(rows: Sequence[Sequence[str]], *, figures: Sequence[int] = ()) -> list[list[Cell]]:
    """Cells of texts; those in the columns ``figures`` are set as numbers."""
    return [
        [Cell(text(each), "number" if index in figures else "text") for index, each in enumerate(row)] for row in rows
    ]
