"""Where and how a record was taken, how to take it again, and what it leaves open."""

from __future__ import annotations

import shlex

from compresskit.bench.record import Record
from compresskit.report.content import Section, Table, plain
from compresskit.report.foreign import number, text
from compresskit.report.numbers import plain_number
from compresskit.report.view import View

MOST_ROWS = 60


def environment(record: Record) -> Section:
    """Machine, software, plan."""
    env = record.env
    rows: list[list[str]] = []
    for label, values in (("CPU", env.cpu), ("memory", env.memory), ("system", env.system), ("library", env.libraries)):
        rows += [[f"{label}: {text(key, 60)}", text(value)] for key, value in list(values.items())[:MOST_ROWS]]
    for index, device in enumerate(env.gpu[:8]):
        rows += [[f"GPU {index}: {text(key, 60)}", text(value)] for key, value in list(device.items())[:MOST_ROWS]]
    rows += [[f"variable {text(key, 60)}", text(value)] for key, value in list(env.variables.items())[:MOST_ROWS]]
    rows += [["git commit", text(env.git_commit)]] if env.git_commit else []
    rows += [["environment hash", text(env.hash)]]
    packages = [[text(name, 60), text(version, 60)] for name, version in sorted(env.packages.items())[:MOST_ROWS]]
    tables = [
        Table(["", ""], plain(rows), "machine", closed=True),
        Table(["", ""], plain(_plan(record)), "plan", closed=True),
    ]
    if packages:
        tables.append(Table(["package", "version"], plain(packages), "packages", closed=True))
    command = " ".join(shlex.quote(text(word)) for word in record.command[:100])
    lead = "The same command on the same machine gives figures that may be compared with these."
    return Section("Environment, and how to reproduce", lead, tables=tables, verbatim=command)


def _plan(record: Record) -> list[list[str]]:
    plan = record.plan
    rows = [
        ["profile", text(plan.profile)],
        ["device", text(plan.device)],
        ["turns", plan.interleave],
        ["processes an arm", text(plan.replicates)],
        ["slice", f"{plain_number(number(plan.slice_seconds))} s"],
        ["seed", text(plan.seed)],
        ["same within", f"± {plain_number(number(100 * plan.delta))} %"],
        ["stop rule", text(plan.stop)],
        ["ended by", text(plan.stopped_by)],
        ["blocks", str(len(record.blocks))],
    ]
    rows += [
        [
            f"cell {text(cell.id, 60)}",
            f"{cell.scenario}, batch {text(cell.batch)}, {text(cell.length)} tokens,"
            f" {text(cell.threads)} threads, input {text(cell.input_hash, 24)}",
        ]
        for cell in plan.cells[:MOST_ROWS]
    ]
    return [row for row in rows if row[1]]


def not_measured(view: View) -> Section:
    """What the run left out, and every figure that could not be had, with the reason."""
    rows = [[text(item.what, 120), "the run", text(item.why)] for item in view.record.not_measured[:MOST_ROWS]]
    groups: dict[tuple[str, str], list[str]] = {}
    for arm in view.arms:
        if arm.error:
            groups.setdefault(("the whole model", text(arm.error)), []).append(view.shown(arm))
        cells = [("", arm.metrics), *((cell, arm.cells[cell]) for cell in view.cells if cell in arm.cells)]
        for cell, metrics in cells:
            for name, metric in list(metrics.items())[:200]:
                if metric.status == "unavailable":
                    where = f"{text(name, 60)}" + (f" at {text(cell, 60)}" if cell and len(view.cells) > 1 else "")
                    groups.setdefault((where, text(metric.reason)), []).append(view.shown(arm))
        if arm.quality is not None and arm.quality.status == "unavailable":
            groups.setdefault((text(arm.quality.metric, 60), text(arm.quality.reason)), []).append(view.shown(arm))
    merged: dict[tuple[str, str], list[str]] = {}
    for (what, why), names in groups.items():
        merged.setdefault((_who(view, names), why), []).append(what)
    rows += [[_some(what, 8), who, why] for (who, why), what in list(merged.items())[:MOST_ROWS]]
    said = any("quality" in item.what for item in view.record.not_measured)
    if all(arm.quality is None for arm in view.arms) and not said:
        rows.insert(0, ["quality on a task", "all models", "no task was given"])
    if not rows:
        return Section("Not measured", "Everything that was asked for was measured.")
    lead = "A figure that could not be had is named here; it is never a zero above."
    return Section("Not measured", lead, tables=[Table(["what", "of", "why"], plain(rows), cards=True)])


def _who(view: View, names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    return "all models" if len(unique) == len(view.arms) else _some(unique, 4)


def _some(names: list[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def all_figures(view: View) -> Section:
    """Every metric of every arm and cell, closed."""
    rows: list[list[str]] = []
    for arm in view.arms:
        every = [("", arm.metrics), *((cell, arm.cells[cell]) for cell in view.cells if cell in arm.cells)]
        for cell, metrics in every:
            for name, metric in sorted(metrics.items())[:100]:
                if metric.status == "unavailable" or len(rows) >= 1200:
                    continue
                low_high = ""
                if metric.ci is not None and None not in (number(metric.ci[0]), number(metric.ci[1])):
                    low_high = f"[{plain_number(metric.ci[0])}, {plain_number(metric.ci[1])}]"
                value = plain_number(number(metric.value)) if number(metric.value) is not None else "too large to show"
                how = text(metric.method, 60) + ("" if metric.status == "measured" else f" ({metric.status})")
                count = text(metric.n) if metric.n is not None else ""
                rows.append(
                    [
                        view.shown(arm),
                        text(cell, 60),
                        text(name, 60),
                        value,
                        low_high,
                        text(metric.unit, 20),
                        count,
                        how,
                    ]
                )
    columns = ["model", "cell", "figure", "value", "interval", "unit", "n", "how"]
    return Section("All figures", tables=[Table(columns, plain(rows, figures=(3, 4, 6)), "every figure", closed=True)])
