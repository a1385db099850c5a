"""Records as a Markdown table for pull requests, and as rows of CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

from compresskit.bench.record import Arm, Record
from compresskit.report.card import escaped
from compresskit.report.foreign import interval, number, positive, text
from compresskit.report.numbers import megabytes, plain_number, ratio_text, with_interval
from compresskit.report.view import View

COLUMNS = (
    "record", "arm", "role", "engine", "cell", "figure", "value", "unit", "low", "high", "level", "n", "status",
    "method", "reason", "verdict",
)  # fmt: skip
_FORMULA = re.compile(r"^\s*[=+\-@\t\r|%]")


def markdown(named: Sequence[tuple[str, Record]], headlines: Sequence[str], notices: Sequence[Sequence[str]]) -> str:
    """A table a record: warnings above it, its headline below. Text from outside is escaped."""
    blocks = []
    for (name, record), headline, warnings in zip(named, headlines, notices, strict=True):
        view = View(record)
        lines = [f"**{escaped(text(name, 80))}** · {escaped(text(view.cell, 80))}", ""]
        lines += [f"> ⚠ {escaped(warning)}" for warning in warnings]
        lines += [""] if warnings else []
        lines += _table(view)
        lines += ["", escaped(headline)] if headline else []
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _table(view: View) -> list[str]:
    score = view.score
    quality = score.name if score is not None else "quality"
    lines = [
        f"| model | engine | size | {view.latency_label} | time over baseline's | {escaped(quality)} | verdict |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for arm in view.arms:
        row, p50, size = view.comparison(arm), view.latency(arm), view.size_of(arm)
        span = score.spans.get(arm.name) if score is not None else None
        verdict = arm.role if arm.role != "candidate" else row.verdict if row is not None else "–"
        cells = [
            view.shown(arm),
            text(arm.engine, 30),
            "–" if size is None else megabytes(int(size)),
            with_interval(number(p50.value), interval(p50.ci)),
            "–" if row is None else ratio_text(positive(row.ratio), interval(row.ci)),
            "–" if span is None else plain_number(span.value),
            "not run: " + text(arm.error, 80) if arm.error else verdict,
        ]
        lines.append("| " + " | ".join(escaped(cell) for cell in cells) + " |")
    if view.hidden:
        lines += ["", f"{view.hidden} models more are not shown."]
    return lines


def csv_text(named: Sequence[tuple[str, Record]]) -> str:
    """One row a figure, of all arms and cells, comparisons as well. No cell is read as a formula."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, record in named:
        for row in _rows(record):
            writer.writerow([_inert(cell) for cell in (name, *row)])
    return stream.getvalue()


def _rows(record: Record) -> Iterator[tuple[object, ...]]:
    for arm in record.arms:
        who = (arm.name, arm.role, arm.engine)
        for cell, metrics in [("", arm.metrics), *arm.cells.items()]:
            for name, found in metrics.items():
                yield (
                    *who, cell, name, found.value, found.unit, *(found.ci or (None, None)), found.level, found.n,
                    found.status, found.method, found.reason, None,
                )  # fmt: skip
        yield from _quality_rows(arm, who)
    arms = {arm.name: arm for arm in record.arms}
    for row in record.comparisons:
        other = arms.get(row.b)
        yield (
            row.b, other.role if other else "", other.engine if other else "", row.cell, f"ratio:{row.metric}",
            row.ratio,
            f"time of {row.a}", *(row.ci or (None, None)), row.level, None, "derived", "", row.reason, row.verdict,
        )  # fmt: skip


def _quality_rows(arm: Arm, who: tuple[str, str, str]) -> Iterator[tuple[object, ...]]:
    quality = arm.quality
    if quality is not None:
        yield (
            *who, quality.task, f"quality:{quality.metric}", quality.value, quality.unit, *(quality.ci or (None, None)),
            quality.level, quality.n, quality.status, "", quality.reason, None,
        )  # fmt: skip


def _inert(value: object) -> object:
    """Numbers as they are; text on one line, with an apostrophe before what a spreadsheet would compute."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if number(value, largest=1e308) is not None else ""
    shown = text(value)
    return f"'{shown}" if _FORMULA.match(shown) else shown
