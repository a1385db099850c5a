"""What the steps of a recipe did: the size after each, and the layers one by one. From the content of a report.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compresskit.report.charts.waterfall import waterfall
from compresskit.report.content import Cell, Section, Table, plain
from compresskit.report.figure import figure
from compresskit.report.foreign import mapping, number, positive, records, text
from compresskit.report.numbers import held, plain_number

MOST_LAYERS = 300
MOST_STEPS = 40


def waterfall_section(
    steps: object, *, before: object = None, after: object = None, title: str = "Size by step"
) -> Section | None:
    """The waterfall from ``before`` to ``after`` bytes on disk; None without a step that knows its size.

    A step knows the bytes of its tensors. The other files (tokenizer, config) are the rest of ``after`` over the last
    step; they are counted in every bar, so that the bars add up to what is on disk.
    """
    known = [(step, size) for step in records(steps)[:MOST_STEPS] if (size := positive(step.get("bytes"))) is not None]
    if not known:
        return None
    start, end = positive(before), positive(after)
    rest = end - known[-1][1] if end is not None else 0.0
    rest = rest if rest >= 0 else 0.0
    levels = [(f"{index} {step_name(step)}", size + rest) for index, (step, size) in enumerate(known, 1)]
    if start is not None:
        levels.insert(0, ("source", start))
    levels.append(("result", end if end is not None else levels[-1][1]))
    if len(levels) < 2:
        return None
    chart = figure(lambda width: waterfall(levels, width))
    first = levels[0][1]
    rows = [
        [name, held(size), _change(size - previous) if index else "", f"{size / first:.3f}"]
        for index, ((name, size), previous) in enumerate(zip(levels, [first, *(s for _, s in levels)], strict=False))
    ]
    lead = "Files to serve after each step; green is what the step took off."
    if rest:
        lead += f" Tokenizer, config and file headers ({held(rest)}) are counted in every bar."
    return Section(title, lead, chart, [Table(["", "size", "change", "of source"], plain(rows, figures=(1, 2, 3)))])


def _change(change: float) -> str:
    if not round(change):
        return ""
    return ("−" if change < 0 else "+") + held(abs(change))


def step_name(step: dict[str, Any]) -> str:
    """The method, and the recovery after it."""
    recover = mapping(step.get("recover")).get("method")
    return text(step.get("method") or "step", 50) + (f" + {text(recover, 40)}" if recover else "")


def layer_section(steps: object, *, title: str = "Layer by layer") -> Section | None:
    """Every site that a step reports on: what is left, bits, error. None if no step does."""
    rows = [row for step in records(steps)[:MOST_STEPS] for row in _layers(step)]
    if not rows:
        return None
    hidden = len(rows) - MOST_LAYERS
    # Where there are too many, those with the largest errors are the ones to see.
    kept = rows if hidden <= 0 else sorted(rows, key=lambda row: -(row[0] or 0.0))[:MOST_LAYERS]
    columns = ["layer", "step", "kept", "sparsity", "bits", "bytes", "error", "of"]
    lead = "Error is relative: of the weights, or of the layer's outputs on the calibration text."
    notes = [f"{hidden} layers with smaller errors are left out."] if hidden > 0 else []
    table = Table(columns, [cells for _, cells in kept], "layers", closed=len(kept) > 12)
    worst = _worst(rows)
    tables = [worst, table] if len(kept) > 12 and worst.rows else [table]
    return Section(title, lead, tables=tables, notes=notes)


def _worst(rows: Sequence[tuple[float | None, list[Cell]]]) -> Table:
    worst = sorted((row for row in rows if row[0] is not None), key=lambda row: -(row[0] or 0.0))[:5]
    columns = ["layer", "step", "kept", "sparsity", "bits", "bytes", "error", "of"]
    return Table(columns, [cells for _, cells in worst], "the five with the largest error")


def _layers(step: dict[str, Any]) -> list[tuple[float | None, list[Cell]]]:
    found = []
    for path, value in mapping(step.get("details")).items():
        detail = mapping(value)
        if not detail:
            continue
        kept, sparsity = _kept(detail)
        error, of = _error(detail)
        sizes = detail.get("bytes")
        pair = [positive(size) for size in sizes] if isinstance(sizes, list) and len(sizes) == 2 else []
        sizes_text = f"{held(pair[0])} → {held(pair[1])}" if len(pair) == 2 and pair[0] and pair[1] else "–"
        cells = [
            Cell(text(path, 120) or "the model", "code"),
            Cell(text(step.get("method"), 50)),
            Cell(kept, "number"),
            Cell("–" if sparsity is None else f"{100 * sparsity:.1f} %", "number"),
            Cell(plain_number(positive(detail.get("bits_per_weight"))), "number"),
            Cell(sizes_text, "number"),
            Cell("–" if error is None else _four(error), "number"),
            Cell(of),
        ]
        found.append((error, cells))
    return found


def _kept(detail: dict[str, Any]) -> tuple[str, float | None]:
    """``1152 of 1536`` and the share that is gone, in whatever the method counts."""
    sparsity = number(detail.get("sparsity"))
    sparsity = sparsity if sparsity is not None and 0 <= sparsity <= 1 else None
    whole = positive(detail.get("of"))
    if whole is None:
        return "–", sparsity
    for name, word in (("kept", ""), ("rank", "rank ")):
        value = detail.get(name)
        left = number(len(value)) if isinstance(value, list) else number(value)
        if left is not None and 0 <= left <= whole:
            share = 1 - left / whole if name == "kept" else None
            return f"{word}{left:g} of {whole:g}", sparsity if sparsity is not None else share
    return "–", sparsity


def _error(detail: dict[str, Any]) -> tuple[float | None, str]:
    for name, of in (("output_error", "outputs"), ("relative_error", "weights"), ("error", "")):
        value = number(detail.get(name))
        if value is not None and value >= 0:
            return value, of
    return None, ""


def _four(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 or value == 0 else f"{value:.1e}"
