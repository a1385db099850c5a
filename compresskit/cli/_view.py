"""How plans, ledgers and results look on a terminal, drawn from the same rows as the page and the card."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compresskit.report.numbers import megabytes
from compresskit.report.tables import STEP_COLUMNS, step_rows, summary_rows


def plan_view(plan: dict[str, Any]) -> RenderableType:
    """``Plan: MODEL  90.9 MB -> ~22.1 MB`` and a line a step."""
    predicted = plan["predicted_bytes"]
    size = megabytes(plan["bytes_before"])
    outlook = f"{size} -> ~{megabytes(predicted)}" if predicted is not None else f"{size} -> depends on the data"
    lines: list[RenderableType] = [Text(f"Plan: {plan['model']}  weights {outlook}  {len(plan['steps'])} steps")]
    table = Table(box=None, pad_edge=False, show_header=False)
    for number, step in enumerate(plan["steps"], 1):
        options = ", ".join(f"{key}={_short(value)}" for key, value in step["options"].items())
        tail = f"+ {step['recover']}" if step["recover"] else ""
        table.add_row(f"  {number}", Text(step["method"]), _sites(step["sites"]), Text(options), Text(tail))
    lines.append(table)
    for step in plan["steps"]:
        lines += [
            Text(f"  - {step['method']} leaves {path or 'the model'}: {why}") for path, why in step["skipped"].items()
        ]
    lines += [Text(f"  ! {warning}") for warning in plan["warnings"]]
    return Group(*lines)


def _sites(paths: list[str]) -> Text:
    if paths == [""]:
        return Text("the model")
    return Text(f"{len(paths)} site{'s' if len(paths) != 1 else ''}: {paths[0]}" + (" …" if len(paths) > 1 else ""))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "…"


def result_view(result: dict[str, Any]) -> RenderableType:
    """The ledger, the final table, the warnings, where the files are."""
    steps = Table(box=None, pad_edge=False)
    for name in STEP_COLUMNS:
        steps.add_column(name)
    for row in step_rows(result["steps"], times=True):
        steps.add_row(*(Text(cell) for cell in row))
    final = Table(box=None, pad_edge=False)
    for name in ("", "source", "result", "ratio"):
        final.add_column(name)
    for row in summary_rows(result):
        final.add_row(*(Text(cell) for cell in row))
    lines: list[RenderableType] = [steps, Text(""), final]
    lines += [
        Text(f"gate {gate['metric']} {gate['gate']}: {'holds' if gate['passed'] else 'missed'}")
        for gate in result["gates"]
    ]
    lines += [Text(f"! {warning}") for warning in result["warnings"]]
    if result["output"]:
        lines.append(Text(f"written to {result['output']}"))
    return Group(*lines)
