"""The page of one apply: what was gained, what each step and layer did, where the rest of the bytes is."""

from __future__ import annotations

from typing import Any

import yaml

from compresskit import __version__
from compresskit.report.card import NOT_MEASURED
from compresskit.report.charts.curves import Curve
from compresskit.report.content import Cell, Part, Section, Table, numbers, plain
from compresskit.report.curve_sections import pr_points, pr_section
from compresskit.report.foreign import mapping, records, text
from compresskit.report.numbers import fidelity_text, megabytes
from compresskit.report.profiled import profile_section
from compresskit.report.render import render
from compresskit.report.steps import layer_section, waterfall_section
from compresskit.report.tables import STEP_COLUMNS, step_rows, summary_rows

MOST_SKIPPED = 200
MOST_OF_A_RECIPE = 20_000


def apply_page(result: dict[str, Any], parts: object = None) -> str:
    """HTML for ``result``, the content of report.json. ``parts``: rows of the result's profile, if there is one."""
    before, after = result["before"]["disk_bytes"], result["after"]["disk_bytes"]
    sections = [
        Section("Result", "", tables=[Table(["", "source", "result", "ratio"], _summary(result), cards=True)]),
        waterfall_section(result["steps"], before=before, after=after),
        Section("Steps", tables=[Table(STEP_COLUMNS, plain(step_rows(result["steps"], times=True)))]),
        _gates(result["gates"]),
        _precision_recall(result),
        layer_section(result["steps"]),
        profile_section(parts),
        _skipped(result["steps"]),
        Section("Recipe", verbatim=_recipe(result["recipe"])),
        Section("Not measured", f"{NOT_MEASURED}{'' if parts else '; the profile of the result'}."),
    ]
    source = text(result["source"], 120)
    page = Part(
        source,
        "Every figure was measured on the saved files.",
        f"{megabytes(after)} of {megabytes(before)}, {fidelity_text(result['fidelity'])}",
        [text(warning) for warning in result["warnings"]],
        [section for section in sections if section is not None],
    )
    return render(f"compresskit: {source}", [page], footer=f"Made by compresskit {__version__}.")


def _summary(result: dict[str, Any]) -> list[list[Cell]]:
    return [[Cell(row[0].strip()), *numbers(*row[1:])] for row in summary_rows(result)]


def _precision_recall(result: dict[str, Any]) -> Section | None:
    """The curves of source and result, where the task gives them."""
    quality = mapping(result.get("quality"))
    found = []
    for name, key in (("source", "details_before"), ("result", "details")):
        points = pr_points(mapping(quality.get(key)).get("pr_curve"))
        if len(points) >= 2:
            found.append(Curve(name, tuple(points)))
    return pr_section(found)


def _recipe(recipe: object) -> str:
    written: str = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    return written if len(written) <= MOST_OF_A_RECIPE else written[:MOST_OF_A_RECIPE] + "\n… (cut)"


def _gates(gates: object) -> Section | None:
    rows = [
        [
            Cell(text(f"{gate.get('metric')} {gate.get('gate')}", 80)),
            Cell(f"{text(gate.get('found'), 20)} {text(gate.get('unit'), 20)}".strip(), "number"),
            Cell("passed", "faster") if gate.get("passed") is True else Cell("missed", "slower"),
        ]
        for gate in records(gates)
    ]
    return Section("Gates", tables=[Table(["gate", "measured", "verdict"], rows)]) if rows else None


def _skipped(steps: object) -> Section | None:
    rows = [
        [Cell(text(step.get("method"), 60)), Cell(text(path, 120) or "the model", "code"), Cell(text(reason))]
        for step in records(steps)
        for path, reason in sorted(mapping(step.get("skipped")).items())
    ]
    if not rows:
        return None
    notes = [f"{len(rows) - MOST_SKIPPED} more are not shown."] if len(rows) > MOST_SKIPPED else []
    table = Table(["step", "site", "why"], rows[:MOST_SKIPPED], "sites left alone", closed=len(rows) > 12)
    return Section("Left alone", tables=[table], notes=notes)
