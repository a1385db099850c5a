"""The profile of a model as a chart and a table: shares of bytes, multiplications and time by part and by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compresskit.report.charts.profile import Share, profile_bars
from compresskit.report.content import Cell, Section, Table
from compresskit.report.figure import figure
from compresskit.report.foreign import number, records, text
from compresskit.report.numbers import flops_text, held, millions

INNER = ("attention", "ffn", "experts")
MOST_ROWS = 26
MOST_PARTS = 400
_FIGURES = ("parameters", "bytes", "flops", "milliseconds")
_MEASURES = (("bytes", "bytes"), ("flops", "FLOPs"), ("milliseconds", "CPU ms"))


@dataclass(frozen=True)
class Line:
    """One part, or the sum of all of a kind, in figures of which some may be missing."""

    name: str
    kind: str
    count: int
    parameters: float | None
    bytes: float | None
    flops: float | None
    milliseconds: float | None

    def measure(self, name: str) -> float | None:
        """The figure called ``name``."""
        value = getattr(self, name)
        return None if value is None else float(value)


def lines(parts: object) -> list[Line]:
    """The parts of a profile as they come; what isn't one is left out."""
    found = []
    for part in records(parts)[:MOST_PARTS]:
        figures = [_not_negative(part.get(key)) for key in _FIGURES]
        found.append(Line(text(part.get("path") or "", 120), text(part.get("kind") or "", 20), 1, *figures))
    return found


def _not_negative(value: object) -> float | None:
    found = number(value)
    return found if found is not None and found >= 0 else None


def by_kind(parts: Sequence[Line]) -> list[Line]:
    """Sums over embeddings, attention, feed-forward networks, experts, the rest of the blocks, heads, other."""
    found = []
    for kind in dict.fromkeys(line.kind for line in parts):
        same = [line for line in parts if line.kind == kind]
        if kind == "block":
            inner = [line for line in parts if line.kind in INNER]
            sums = [_less(_sum(same, name), _sum(inner, name)) for name in _FIGURES]
            found.append(Line("rest of the blocks (norms, residuals)", kind, len(same), *sums))
        else:
            found.append(Line(_PLURAL.get(kind, kind), kind, len(same), *(_sum(same, name) for name in _FIGURES)))
    order = {
        kind: index for index, kind in enumerate(("embedding", "attention", "ffn", "experts", "block", "head", "other"))
    }
    return sorted(found, key=lambda line: order.get(line.kind, len(order)))


_PLURAL = {
    "embedding": "embeddings",
    "attention": "attention",
    "ffn": "feed-forward networks",
    "other": "everything else",
}


def _sum(parts: Sequence[Line], name: str) -> float | None:
    values = [value for line in parts if (value := line.measure(name)) is not None]
    return sum(values) if values else None


def _less(whole: float | None, part: float | None) -> float | None:
    return None if whole is None else max(0.0, whole - (part or 0.0))


def whole(parts: Sequence[Line], name: str) -> float | None:
    """The total of ``name``: parts inside a block are the block's."""
    return _sum([line for line in parts if line.kind not in INNER], name)


def profile_section(parts: object, *, title: str = "Where bytes, FLOPs and time are", lead: str = "") -> Section | None:
    """Chart and tables; None without parts. A model of many blocks is drawn by kind."""
    found = lines(parts)
    if not found:
        return None
    kinds = by_kind(found)
    measures = [(key, name) for key, name in _MEASURES if whole(found, key)]
    if not measures:
        return None
    totals = {key: whole(found, key) or 1.0 for key, _ in measures}
    names = [name for _, name in measures]
    every = [_shares(line, totals, inner=line.kind in INNER) for line in found]
    summed = [_shares(line, totals, inner=False) for line in kinds]
    chart = figure(lambda width: profile_bars(summed if width < 500 or len(found) > MOST_ROWS else every, names, width))
    tables = [_table(kinds, totals, "by kind"), _table(found, totals, "part by part", closed=True)]
    return Section(
        title,
        lead or "Shares of the whole model. Paler bars are inside the block above them. A multiply-add is two FLOPs.",
        chart,
        tables,
    )


def _shares(line: Line, totals: dict[str, float], *, inner: bool) -> Share:
    values = ((line.measure(key), key, total) for key, total in totals.items())
    return Share(
        line.name,
        inner,
        tuple(None if v is None else (v / total, f"{line.name}: {_figure(key, v)}") for v, key, total in values),
    )


def _figure(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    if key == "bytes":
        return held(value)
    return flops_text(value) if key == "flops" else f"{value:.3g} ms"


def _table(rows: Sequence[Line], totals: dict[str, float], caption: str, *, closed: bool = False) -> Table:
    columns = ["part", "kind", "parameters"]
    for key, name in _MEASURES:
        columns += [name, "share"] if key in totals else []
    cells = []
    for line in rows:
        row: list[Any] = [
            Cell(line.name),
            Cell(line.kind + (f" × {line.count}" if line.count > 1 else "")),
            Cell("–" if line.parameters is None else millions(int(line.parameters)), "number"),
        ]
        for key, _ in _MEASURES:
            if key in totals:
                value = line.measure(key)
                share = "–" if value is None else f"{100 * value / totals[key]:.1f} %"
                row += [Cell(_figure(key, value), "number"), Cell(share, "number")]
        cells.append(row)
    return Table(columns, cells, caption, closed)
