"""Sections with lines: cost against length with its exponents, precision against recall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compresskit.bench import scale
from compresskit.bench.record import Cell as Work
from compresskit.report.charts.curves import LINES, Curve, cost_by_length, precision_recall
from compresskit.report.content import Section, Table, plain
from compresskit.report.figure import figure
from compresskit.report.foreign import mapping, number, positive
from compresskit.report.numbers import plain_number
from compresskit.report.view import View

MOST_CELLS = 200
_RESAMPLES = 1000


def lengths(view: View) -> Section | None:
    """Cost against length, where at least three cells differ in nothing else; the exponents with their intervals."""
    cells = _longest_line(view.record.plan.cells[:MOST_CELLS])
    if len(cells) < 3:
        return None
    curves = []
    for arm in view.candidates:
        points = [
            (float(cell.length), value)
            for cell in cells
            if (value := positive(view.latency(arm, cell.id).value)) is not None
        ]
        if len(points) >= 3:
            curves.append(Curve(view.shown(arm), tuple(points)))
    if not curves:
        return None
    label = view.latency_label
    chart = figure(lambda width: cost_by_length(curves, width, cost=label))
    rows = [[curve.name, plain_number(a), plain_number(b)] for curve in curves for a, b in curve.points]
    figures = Table(
        ["model", "tokens of a row", label], plain(rows, figures=(1, 2)), "figures of the chart", closed=True
    )
    lead = (
        "Both axes are logarithmic, so the slope is the exponent: 1 for cost that grows as the text does, 2 for"
        " attention over all pairs once it outweighs the matrices."
    )
    notes = [f"{len(curves) - LINES} models more are in the table only."] if len(curves) > LINES else []
    return Section("Cost against length", lead, chart, [*_exponents(view, cells), figures], notes)


def _longest_line(cells: Sequence[Work]) -> list[Work]:
    """The cells that differ in length alone, in its order; of several such sets the largest."""
    groups: dict[tuple[Any, ...], dict[float, Work]] = {}
    for cell in cells:
        length = positive(cell.length)
        if length is not None:
            groups.setdefault((cell.scenario, cell.batch, cell.threads), {}).setdefault(length, cell)
    best = max(groups.values(), key=len, default={})
    return [best[length] for length in sorted(best)]


def _exponents(view: View, cells: Sequence[Work]) -> list[Table]:
    """Fitted to the blocks; nothing where an arm lacks them."""
    wanted = {cell.id for cell in cells}
    blocks = [block for block in view.record.blocks if block.cell in wanted]
    arms = [arm for arm in view.candidates if not arm.error and _complete(blocks, arm.name, wanted)]
    if not arms:
        return []
    plan = view.record.plan.model_copy(update={"cells": list(cells)})
    part = view.record.model_copy(update={"arms": arms, "blocks": blocks, "plan": plan})
    found = [fit for fit in scale.fits(part, resamples=_RESAMPLES) if fit.axis == "length"]
    rows = [
        [
            view.shown(fit.arm),
            f"{fit.exponent:.2f} [{fit.ci[0]:.2f}, {fit.ci[1]:.2f}]",
            f"{fit.last:.2f} [{fit.last_ci[0]:.2f}, {fit.last_ci[1]:.2f}]",
        ]
        for fit in found
    ]
    return [Table(["model", "exponent", "of the last step alone"], plain(rows, figures=(1, 2)))]


def _complete(blocks: Sequence[Any], arm: str, cells: set[str]) -> bool:
    """Whether every cell has slices of ``arm``, and all its times have a logarithm."""
    slices = [(block.cell, part) for block in blocks for part in block.slices if part.arm == arm]
    times = [part.wall_ms for _, part in slices]
    tokens = [row for _, part in slices for row in part.token_ms]
    usable = all(positive(value) is not None for row in (*times, *tokens) for value in row)
    decoding = [any(part.token_ms) for _, part in slices]
    return {cell for cell, _ in slices} == cells and all(times) and usable and (all(decoding) or not any(decoding))


def precision_and_recall(view: View) -> Section | None:
    """PR curves, for arms whose quality carries their points under ``details.pr_curve``."""
    curves = []
    for arm in view.candidates:
        points = pr_points(mapping(arm.quality.details).get("pr_curve")) if arm.quality is not None else []
        if len(points) >= 2:
            curves.append(Curve(view.shown(arm), tuple(points)))
    return pr_section(curves)


def pr_section(curves: Sequence[Curve]) -> Section | None:
    """The chart of ``curves`` of (recall, precision), with a table of up to 25 points each; None without any."""
    if not curves:
        return None
    chart = figure(lambda width: precision_recall(curves, width))
    rows = [[c.name, f"{a:.4f}", f"{b:.4f}"] for c in curves for a, b in c.points[:: -(-len(c.points) // 25)]]
    table = Table(["model", "recall", "precision"], plain(rows, figures=(1, 2)), "points of the curves", closed=True)
    return Section("Precision and recall", "Each line goes over all thresholds.", chart, [table])


def pr_points(value: object) -> list[tuple[float, float]]:
    """(recall, precision) in order of recall, from pairs or from dictionaries; at most 500."""
    if not isinstance(value, list):
        return []
    found = []
    for item in value[:: -(-len(value) // 500) or 1]:
        pair = (item.get("recall"), item.get("precision")) if isinstance(item, dict) else item
        bounds = [number(each) for each in pair] if isinstance(pair, list | tuple) and len(pair) == 2 else []
        if len(bounds) == 2 and all(bound is not None and 0 <= bound <= 1 for bound in bounds):
            found.append((float(bounds[0] or 0.0), float(bounds[1] or 0.0)))
    return sorted(found, key=lambda point: (point[0], -point[1]))
