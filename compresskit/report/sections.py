"""The charts of a benchmark record, each with the table of what it shows."""

from __future__ import annotations

import statistics

from compresskit.bench.record import Comparison, Record
from compresskit.report.charts.forest import Ratio, forest
from compresskit.report.charts.pareto import pareto
from compresskit.report.charts.trace import Strip, trace
from compresskit.report.content import Cell, Section, Table, plain
from compresskit.report.figure import figure
from compresskit.report.foreign import interval, number, positive, text
from compresskit.report.numbers import megabytes, plain_number, ratio_text, with_interval
from compresskit.report.trade import Point, Standing, standings
from compresskit.report.view import View, verdict_class

MOST_RATIOS = 40
MOST_STRIPS = 12
SAME_SIZE = 0.01


def result(view: View) -> Section:
    """One row an arm: what a reader who reads one table needs."""
    score = view.score
    quality_name = score.name if score is not None else "quality"
    columns = ["model", "engine", "size", view.latency_label, "time over baseline's", quality_name, "verdict"]
    rows = []
    for arm in view.arms:
        row = view.comparison(arm)
        p50 = view.latency(arm)
        size = view.size_of(arm)
        span = score.spans.get(arm.name) if score is not None else None
        ci = None if span is None or span.low == span.high else (span.low, span.high)
        verdict = _verdict(row, arm.role, arm.error)
        rows.append(
            [
                Cell(view.shown(arm)),
                Cell(text(arm.engine, 30)),
                Cell("–" if size is None else megabytes(int(size)), "number"),
                Cell(with_interval(number(p50.value), interval(p50.ci)), "number", title=text(p50.reason)),
                Cell(ratio_text(*_ratio(row)), "number"),
                Cell(with_interval(None if span is None else span.value, ci), "number"),
                verdict,
            ]
        )
    lead = "Square brackets hold 95 % intervals. "
    lead += "The control is the baseline once more: the noise of this run." if _has_control(view) else ""
    return Section("Result", lead, tables=[Table(columns, rows, f"at {text(view.cell, 80)}", cards=True)])


def _has_control(view: View) -> bool:
    return any(arm.role == "control" for arm in view.arms)


def _verdict(row: Comparison | None, role: str, error: str | None) -> Cell:
    if error:
        return Cell("not run", "unsure", title=text(error))
    if role in ("baseline", "control"):
        return Cell(role, "faint")
    if row is None:
        return Cell("–")
    return Cell(row.verdict, verdict_class(row.verdict), title=text(row.reason))


def _ratio(row: Comparison | None) -> tuple[float | None, tuple[float, float] | None]:
    return (None, None) if row is None else (positive(row.ratio), interval(row.ci))


def trade(view: View, cost: str) -> Section:
    """Quality × ``cost`` (latency or size)."""
    names = {"latency": view.latency_label, "size": "files to serve, MB"}
    title = {"latency": "Quality against latency", "size": "Quality against size"}[cost]
    score = view.score
    points = view.points(cost)
    if score is None or len(points) < 2:
        why = (
            "no quality was measured: run again with a task"
            if score is None
            else "fewer than two models have both figures"
        )
        return Section(title, f"Not drawn: {why}.")
    slack = SAME_SIZE if cost == "size" else 0.0
    found = standings(points, higher_is_better=score.higher_is_better, slack=slack)
    quality = f"{score.name}, {score.unit}" if score.unit else score.name

    def describe(point: Point) -> str:
        shown = plain_number(point.quality.value), plain_number(point.cost.value)
        return f"{point.name}: {quality} {shown[0]}, {names[cost]} {shown[1]}"

    chart = figure(
        lambda width: pareto(
            points,
            found,
            width,
            cost=names[cost],
            quality=quality,
            higher_is_better=score.higher_is_better,
            describe=describe,
        )
    )
    lead = (
        "The line joins the models worth having: none other is at least as good in both. Grey ones are dominated:"
        " another is at least as good in both and clearly better in one. Dotted lines join what can't be told apart:"
        " by the intervals of the paired comparisons with the baseline where there are any, else by the whiskers."
    )
    lead += (
        " The area of a circle is the size of the files."
        if cost == "latency"
        else f" Sizes within {100 * SAME_SIZE:g} % count as equal."
    )
    missing = len(view.candidates) - len(points)
    notes = [f"{missing} models lack one of the figures and aren't drawn."] if missing else []
    return Section(title, lead, chart, [_trade_table(points, found, quality, names[cost])], notes)


def _trade_table(points: list[Point], found: dict[str, Standing], quality: str, cost: str) -> Table:
    rows = []
    for point in points:
        standing = found[point.name]
        says = {
            "frontier": "on the frontier",
            "tied": f"tied with {standing.by}",
            "dominated": f"dominated by {standing.by}",
        }[standing.state]
        more = [name for name in standing.ties if name != standing.by]
        if more:
            says += f"; can't be told from {', '.join(more[:4])}"
        spans = (point.quality, point.cost)
        figures = [with_interval(s.value, None if s.low == s.high else (s.low, s.high)) for s in spans]
        rows.append(
            [
                Cell(point.name),
                *(Cell(f, "number") for f in figures),
                Cell(says, "faint" * (standing.state == "dominated") or "text"),
            ]
        )
    return Table(["model", quality, cost, "standing"], rows, cards=True)


def ratios(view: View) -> Section:
    """The forest of all comparisons of latency."""
    known = {arm.name for arm in view.arms}
    rows: list[tuple[Ratio, Comparison]] = []
    undrawn = 0
    ordered = sorted(view.record.comparisons, key=lambda row: (not row.headline, row.cell != view.cell))
    for row in ordered:
        value = positive(row.ratio)
        if value is None or row.b not in known or len(rows) >= MOST_RATIOS:
            undrawn += 1
            continue
        guards = {text(name, 30): g for name, guard in row.guards.items() if (g := positive(guard.ratio)) is not None}
        several = len(view.cells) > 1
        name = view.shown(row.b) + (f" · {text(row.cell, 40)}" if several else "")
        ci = interval(row.ci)
        rows.append(
            (
                Ratio(
                    name, text(row.cell, 60), value, ci if ci and ci[0] > 0 else None, row.verdict, guards, row.control
                ),
                row,
            )
        )
    if not rows:
        return Section("Ratios to the baseline", "Not drawn: nothing was compared.")
    band = interval(view.record.env.noise.aa_ci)
    band = band if band is not None and band[0] > 0 else None
    lead = (
        "Time over the baseline's with its interval; the shaded band is the baseline against itself, so a difference"
        " inside it is no difference. Triangles are the guards, second estimates by what other work disturbs less."
        if band
        else "Time over the baseline's with its interval. This run has no A/A control."
    )
    drawn = [ratio for ratio, _ in rows]
    delta = min(0.5, abs(view.record.plan.delta)) if number(view.record.plan.delta) is not None else 0.02
    chart = figure(lambda width: forest(drawn, band, delta, width))
    notes = []
    if undrawn:
        notes.append(f"{undrawn} comparisons more are not drawn; the CSV file has them all.")
    return Section("Ratios to the baseline", lead, chart, [_ratio_table([row for _, row in rows], view)], notes)


def _ratio_table(rows: list[Comparison], view: View) -> Table:
    several = len(view.cells) > 1
    columns = ["model", "cell", "ratio", "p", "wall min", "CPU time", "verdict", "why"]
    cells = []
    for row in rows:
        guards = {name: positive(guard.ratio) for name, guard in row.guards.items()}
        cells.append(
            [
                Cell(view.shown(row.b)),
                Cell(text(row.cell, 60)),
                Cell(ratio_text(*_ratio(row)), "number"),
                Cell(plain_number(number(row.p)), "number"),
                Cell(ratio_text(guards.get("wall_min")), "number"),
                Cell(ratio_text(guards.get("cpu_time")), "number"),
                Cell(row.verdict, verdict_class(row.verdict)),
                Cell("; ".join(word for word in (_standing_of(row), text(row.reason)) if word)),
            ]
        )
    if not several:
        columns, cells = columns[:1] + columns[2:], [row[:1] + row[2:] for row in cells]
    return Table(columns, cells, "" if several else f"at {text(view.cell, 80)}", cards=True)


def _standing_of(row: Comparison) -> str:
    return "the headline" if row.headline else "A/A control" if row.control else ""


def block_times(view: View) -> Section | None:
    """The trace of the headline's cell; None without samples in the record."""
    strips = []
    slices = _slices(view.record, view.cell)
    for arm in view.arms[:MOST_STRIPS]:
        if slices.get(arm.name):
            strips.append(Strip(view.shown(arm), tuple(slices[arm.name])))
    if not strips:
        return None
    chart = figure(lambda width: trace(strips, width))
    rows = []
    for strip in strips:
        values = sorted(value for _, _, value, _ in strip.slices)
        halves = [value for _, _, value, _ in sorted(strip.slices, key=lambda each: each[1])]
        early, late = halves[: len(halves) // 2 or 1], halves[len(halves) // 2 :]
        rows.append(
            [
                strip.name,
                str(len(values)),
                plain_number(strip.median),
                plain_number(values[0]),
                plain_number(values[-1]),
                f"{statistics.median(late) / statistics.median(early):.3f}",
                str(sum(throttled for *_, throttled in strip.slices)),
            ]
        )
    columns = ["model", "slices", "median ms", "fastest", "slowest", "second half over first", "throttled"]
    lead = (
        "Each dot is a slice of calls; all arms take turns, so a wave through all strips is the machine, not a model."
    )
    table = Table(columns, plain(rows, figures=range(1, 7)))
    return Section("Block times", lead, chart, [table], [f"Cell {text(view.cell, 80)}."])


def _slices(record: Record, cell: str) -> dict[str, list[tuple[int, float, float, bool]]]:
    found: dict[str, list[tuple[int, float, float, bool]]] = {}
    for count, block in enumerate(record.blocks):
        if block.cell != cell:
            continue
        for part in block.slices:
            each_token = [value for row in part.token_ms for value in row]
            times = [value for each in each_token or part.wall_ms if (value := positive(each)) is not None]
            when = number(part.started)
            if times:
                row = (
                    block.replicate,
                    float(count) if when is None else when,
                    statistics.median(times),
                    part.throttled,
                )
                found.setdefault(part.arm, []).append(row)
    return found
