"""How benchmark records, comparisons and the machine's fitness look on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compresskit.cli._output import table
from compresskit.report.numbers import megabytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from compresskit.bench.gates import Comparison
    from compresskit.bench.record import Arm, Metric, Record
    from compresskit.bench.record import Comparison as Row

_SCENARIO_METRICS = {"decode": ("latency.token.p50", "latency.token.p99")}
_METRICS = ("latency.p50", "latency.p99")


def record_view(record: Record, *, where: str = "") -> RenderableType:
    """Warnings, a table of each cell, what decided the headline, what was not measured."""
    from rich.console import Group

    parts: list[RenderableType] = [f"warning: {notice.text} ({notice.code})" for notice in record.warnings]
    for cell in record.plan.cells:
        parts += ["", _cell_title(record, cell.id), _cell_table(record, cell.id)]
    headline = record.headline
    if headline is not None:
        parts += ["", f"{headline.verdict}: {headline.b} against {headline.a}, {headline.reason}"]
    noise = record.env.noise
    if noise.aa_ci:
        low, high = noise.aa_ci
        parts.append(f"noise: the baseline against itself is {low:.3f} to {high:.3f} ({noise.fit})")
    if record.not_measured:
        parts.append("not measured: " + "; ".join(f"{item.what} ({item.why})" for item in record.not_measured))
    if where:
        parts.append(f"written to {where}")
    return Group(*parts)


def _cell_title(record: Record, cell_id: str) -> str:
    cell = record.cell_by_id[cell_id]
    new = f", {cell.new_tokens} new" if cell.new_tokens else ""
    return f"{cell.scenario}: batch {cell.batch}, {cell.length} tokens{new}, threads {cell.threads}; {cell.text}"


def _cell_table(record: Record, cell_id: str) -> RenderableType:
    names = _SCENARIO_METRICS.get(record.cell_by_id[cell_id].scenario, _METRICS)
    rows = {row.b: row for row in record.comparisons if row.cell == cell_id}
    quality = any(arm.quality for arm in record.arms)
    columns = ["model", "engine", "size", "memory", f"{names[0]} (ms)", names[1], "tokens/s", "time ratio", "verdict"]
    lines = []
    for arm in record.arms:
        if arm.error:
            lines.append([arm.name, arm.engine, *["–"] * 6, "INVALID"])
            continue
        lines.append(_line(arm, cell_id, names, rows.get(arm.name)))
    if quality:
        columns.append("quality")
        for line, arm in zip(lines, record.arms, strict=True):
            line.append(_quality(arm))
    return table(columns, lines)


def _line(arm: Arm, cell: str, names: tuple[str, str], row: Row | None) -> list[str]:
    ratio = "–"
    if row is not None and row.ratio is not None and row.ci is not None:
        ratio = f"{row.ratio:.3f} [{row.ci[0]:.3f}, {row.ci[1]:.3f}]"
    return [
        arm.name,
        arm.engine,
        megabytes(int(arm.metric("size.served", cell).value or 0)),
        _number(arm.metric("memory.peak_run", cell), "{:.0f} MiB"),
        _with_interval(arm.metric(names[0], cell)),
        _number(arm.metric(names[1], cell), "{:.2f}"),
        _number(arm.metric("throughput.tokens", cell), "{:.0f}"),
        ratio,
        "BASELINE" if arm.role == "baseline" else "control" if arm.role == "control" else row.verdict if row else "–",
    ]


def _quality(arm: Arm) -> str:
    found = arm.quality
    if found is None or found.value is None:
        return "–"
    between = f" [{found.ci[0]:.2f}, {found.ci[1]:.2f}]" if found.ci else ""
    return f"{found.metric} {found.value:.2f}{between}"


def _number(metric: Metric, form: str) -> str:
    return "n/a" if metric.value is None else form.format(metric.value)


def _with_interval(metric: Metric) -> str:
    if metric.value is None:
        return "n/a"
    between = f" [{metric.ci[0]:.2f}, {metric.ci[1]:.2f}]" if metric.ci else ""
    return f"{metric.value:.2f}{between}"


_CHANGE_COLUMNS = ("model", "what", "before", "after", "ratio", "verdict")
_GATE_COLUMNS = ("gate", "model", "found", "result", "")


def comparison_rows(found: Comparison) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of changes and of gates."""
    changes = []
    for item in found.changes:
        ratio = "–" if item.ratio is None else f"{item.ratio:.3f}"
        ratio += f" [{item.ci[0]:.3f}, {item.ci[1]:.3f}]" if item.ci else ""
        before, after = (
            f"{value:g} {item.unit}" if value is not None else "n/a" for value in (item.before, item.after)
        )
        what = f"{item.metric} {item.cell}".strip()
        changes.append([item.arm, what, before, after, ratio, "" if found.cross_machine else item.verdict])
    gates = []
    for gate in found.gates:
        value = "n/a" if gate.value is None else f"{gate.value:+.3g}"
        value += f" [{gate.ci[0]:+.3g}, {gate.ci[1]:+.3g}]" if gate.ci else ""
        gates.append([gate.gate, gate.arm, value, gate.verdict, gate.reason])
    return changes, gates


def comparison_view(found: Comparison) -> RenderableType:
    """Two tables, and CROSS-MACHINE on top where that is so."""
    from rich.console import Group

    changes, gates = comparison_rows(found)
    parts: list[RenderableType] = []
    if found.cross_machine:
        parts.append(f"CROSS-MACHINE: {'; '.join(found.differences)}: nothing is judged")
    parts.append(table(_CHANGE_COLUMNS, changes))
    if gates:
        parts += ["", table(_GATE_COLUMNS, gates)]
    return Group(*parts)


def comparison_markdown(found: Comparison) -> str:
    """For a comment on a pull request; what others wrote is escaped."""
    changes, gates = comparison_rows(found)
    lines = ["**CROSS-MACHINE**: " + _cell("; ".join(found.differences)), ""] if found.cross_machine else []
    lines += _markdown(_CHANGE_COLUMNS, changes)
    if gates:
        lines += ["", *_markdown(_GATE_COLUMNS, gates)]
    return "\n".join(lines) + "\n"


def _markdown(columns: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    head = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return head + ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]


def _cell(text: str) -> str:
    for mark in ("\\", "|", "<", ">", "`", "*", "_", "[", "]"):
        text = text.replace(mark, f"&#{ord(mark)};")
    return text.replace("\n", " ").replace("\r", " ")
