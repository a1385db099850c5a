"""The summary of a suite: all its points in one table, and what was skipped or failed. From untyped JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compresskit.report.content import Cell, Part, Section, Table
from compresskit.report.foreign import interval, mapping, number, positive, records, text
from compresskit.report.numbers import megabytes, plain_number, ratio_text, with_interval
from compresskit.report.view import verdict_class

FORMAT = "compresskit.suite/1."
MOST_ROWS = 200
MOST_COLUMNS = 6


@dataclass(frozen=True)
class Summary:
    """What a suite's file says, and its name."""

    name: str
    content: dict[str, Any]


def suite_part(summary: Summary) -> Part:
    """The part of the page that stands before the suite's records."""
    content = summary.content
    rows = records(content.get("rows"))
    env = mapping(content.get("environment"))
    facts = [summary.name, text(content.get("created"), 40), text(env.get("cpu"), 80), _commit(env)]
    sections = [_points(rows), _tasks(rows)]
    command = text(content.get("command"))
    if command:
        sections.append(Section("How to reproduce", verbatim=command))
    return Part(
        f"Suite {text(content.get('name') or summary.name, 60)}",
        " · ".join(fact for fact in facts if fact),
        "",
        _notices(content, len(rows)),
        [section for section in sections if section is not None],
    )


def _commit(env: dict[str, Any]) -> str:
    return f"commit {text(env['git_commit'])[:12]}" if env.get("git_commit") else ""


def _notices(content: dict[str, Any], rows: int) -> list[str]:
    found = []
    for key, word in (("failed", "failed"), ("skipped", "was skipped")):
        for each in records(content.get(key))[:40]:
            code = f" ({text(each.get('code'), 20)})" if each.get("code") else ""
            found.append(f"{text(each.get('what'), 120)} {word}: {text(each.get('why'))}{code}")
    noise = mapping(content.get("noise"))
    if noise.get("fit") == "poor":
        found.append("The machine was not fit for measuring when the first record was taken.")
    if rows > MOST_ROWS:
        found.append(f"{rows - MOST_ROWS} points more are not shown.")
    return found


def _points(rows: list[dict[str, Any]]) -> Section | None:
    if not rows:
        return None
    cells = _keys(rows, "latency")
    several = len({str(row.get("model")) for row in rows}) > 1
    columns = (["model"] if several else []) + ["point", "engine", "size"]
    for cell in cells:
        columns += [f"p50 ms, {text(cell, 40)}", "over baseline's", "verdict"]
    made = []
    for row in rows[:MOST_ROWS]:
        size = positive(row.get("size_bytes"))
        line = [Cell(text(row.get("model"), 60))] if several else []
        line += [Cell(text(row.get("name"), 80)), Cell(text(row.get("engine"), 30))]
        line.append(Cell("–" if size is None else megabytes(int(size)), "number"))
        for cell in cells:
            line += _latency(mapping(mapping(row.get("latency")).get(cell)), row)
        made.append(line)
    lead = "Every point was saved, reopened and measured again in each engine. Records and charts follow below."
    return Section("All points", lead, tables=[Table(columns, made, cards=True)])


def _latency(found: dict[str, Any], row: dict[str, Any]) -> list[Cell]:
    if row.get("error"):
        return [Cell("–", "number"), Cell("–", "number"), Cell("not run", "unsure", title=text(row["error"]))]
    verdict = text(found.get("verdict"), 20)
    return [
        Cell(plain_number(number(found.get("p50_ms"))), "number"),
        Cell(ratio_text(positive(found.get("ratio")), interval(found.get("ci"))), "number"),
        Cell(verdict, verdict_class(verdict)) if verdict else Cell(text(row.get("role"), 20), "faint"),
    ]


def _tasks(rows: list[dict[str, Any]]) -> Section | None:
    """Quality by task; ``live`` is the score before the point was saved and exported."""
    tasks = _keys(rows, "quality")
    domains = _keys(rows, "cosine")
    if not tasks and not domains:
        return None
    columns = ["point", "engine"]
    for task in tasks:
        columns += [text(task, 40), "change", "before saving"]
    columns += [f"cosine, {text(domain, 40)}" for domain in domains]
    made = []
    for row in rows[:MOST_ROWS]:
        line = [Cell(text(row.get("name"), 80)), Cell(text(row.get("engine"), 30))]
        for task in tasks:
            found = mapping(mapping(row.get("quality")).get(task))
            change, span = number(found.get("difference")), interval(found.get("difference_ci"))
            unit = text(found.get("unit"), 12)
            line.append(Cell(with_interval(number(found.get("value")), interval(found.get("ci")), unit), "number"))
            line.append(Cell(_change(change, span), "number"))
            line.append(Cell(plain_number(number(found.get("live"))), "number"))
        for domain in domains:
            kept = mapping(mapping(row.get("cosine")).get(domain))
            mean, least = number(kept.get("mean")), number(kept.get("min"))
            line.append(Cell("–" if mean is None or least is None else f"{mean:.4f} ({least:.4f})", "number"))
        made.append(line)
    return Section("Quality of the points", tables=[Table(columns, made, cards=True)])


def _change(change: float | None, span: tuple[float, float] | None) -> str:
    if change is None:
        return "–"
    return f"{change:+.3f}" + (f" [{span[0]:+.3f}, {span[1]:+.3f}]" if span is not None else "")


def _keys(rows: list[dict[str, Any]], name: str) -> list[str]:
    """Keys of the dictionaries under ``name``, in the order of the rows."""
    return list(dict.fromkeys(key for row in rows for key in mapping(row.get(name))))[:MOST_COLUMNS]
