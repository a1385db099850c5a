"""The page of benchmark records: warnings first, then the trade, then everything that it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compresskit import __version__
from compresskit.bench.record import Record
from compresskit.report import curve_sections, sections
from compresskit.report.bench_tables import csv_text, markdown
from compresskit.report.content import Download, Part, Section
from compresskit.report.embed import downloads
from compresskit.report.environment import all_figures, environment, not_measured
from compresskit.report.foreign import interval, positive, records, text
from compresskit.report.numbers import ratio_text
from compresskit.report.profiled import profile_section
from compresskit.report.quality import quality
from compresskit.report.render import MOST_BYTES, render
from compresskit.report.steps import layer_section, waterfall_section
from compresskit.report.suite import Summary, suite_part
from compresskit.report.view import View

MOST_RECORDS = 24
MOST_SUITES = 4
_MOST_DETAILED = 6
_MARGIN = 20_000


def bench_page(named: Sequence[tuple[str, Record]], suites: Sequence[Summary] = ()) -> str:
    """HTML under 1 MB for ``(name, record)`` pairs, at least one, or for suites; what doesn't fit is named.

    The charts come first; the records' data share the room that is left, and a page that is still too large shows
    fewer details of each record.
    """
    shown = list(named[:MOST_RECORDS])
    footer = f"Made by compresskit {__version__}. This page loads nothing and runs no script."
    detailed = _MOST_DETAILED
    while True:
        first = [suite_part(summary) for summary in suites[:MOST_SUITES]]
        parts = [*first, *(_part(name, record, detailed) for name, record in shown)]
        left_out = len(named) - len(shown)
        if left_out:
            notice = f"{left_out} records more were given than fit on a page: make one of them."
            parts[0] = replace(parts[0], warnings=[notice, *parts[0].warnings])
        title = _title(shown, parts)
        room = MOST_BYTES - _MARGIN - len(render(title, parts, footer=footer).encode())
        if room > 0 or (detailed == 0 and len(shown) <= 1):
            break
        if detailed == 0:
            shown = shown[: 2 * len(shown) // 3]
        detailed = detailed // 6
    each = max(0, room) // max(1, len(shown))
    full = [
        replace(part, downloads=_downloads(name, record, each))
        for part, (name, record) in zip(parts[len(first) :], shown, strict=True)
    ]
    return render(title, [*parts[: len(first)], *full], footer=footer)


def _downloads(name: str, record: Record, room: int) -> list[Download]:
    safe = "".join(char if (char.isalnum() and char.isascii()) or char in "-_" else "-" for char in name)[:60].strip(
        "-"
    )
    return downloads(record, safe or "record", room, lambda: csv_text([(name, record)]))


def _title(named: Sequence[tuple[str, Record]], parts: Sequence[Part]) -> str:
    if len(parts) == 1 or len(parts) > len(named):
        return parts[0].title
    return f"Benchmark: {len(named)} records"


def part_title(view: View) -> str:
    """``int8 and 2 others against fp32``."""
    first = view.record.headline.b if view.record.headline is not None else ""
    others = [
        view.shown(arm) for arm in sorted(view.candidates, key=lambda arm: arm.name != first) if arm.role != "baseline"
    ]
    against = f" against {view.shown(view.baseline)}" if view.baseline is not None else ""
    total = len(others) + view.hidden
    if not others:
        return f"Benchmark of {view.shown(view.baseline)}" if view.baseline is not None else "Benchmark"
    more = f" and {total - 1} other{'s' if total > 2 else ''}" if total > 1 else ""
    return f"{others[0]}{more}{against}"


def _part(name: str, record: Record, detailed: int) -> Part:
    view = View(record)
    own = [
        sections.result(view),
        quality(view),
        sections.trade(view, "latency"),
        sections.trade(view, "size"),
        sections.ratios(view),
        sections.block_times(view) if detailed else None,
        curve_sections.lengths(view),
        curve_sections.precision_and_recall(view),
        *_by_arm(view, detailed),
        not_measured(view),
        environment(record),
        all_figures(view) if detailed else None,
    ]
    return Part(
        part_title(view),
        f"{text(name, 80)} · {text(record.created, 40)} · {text(record.plan.profile, 30)} on {_machine(record)}",
        headline(view),
        warnings(view),
        [section for section in own if section is not None],
    )


def _machine(record: Record) -> str:
    cpu = record.env.cpu
    model = cpu.get("model") or cpu.get("name") or cpu.get("brand") or "an unnamed CPU"
    gpus = [text(gpu.get("name") or "a GPU", 60) for gpu in record.env.gpu[:2]]
    return ", ".join([text(model, 80), *gpus])


def _by_arm(view: View, detailed: int) -> list[Section]:
    found: list[Section | None] = []
    source = view.size_of(view.baseline) if view.baseline is not None else None
    for arm in [arm for arm in view.candidates if arm.steps][:detailed]:
        name = view.shown(arm)
        found.append(
            waterfall_section(arm.steps, before=source, after=view.size_of(arm), title=f"Size by step: {name}")
        )
        found.append(layer_section(arm.steps, title=f"Layer by layer: {name}"))
    for arm in [arm for arm in view.candidates if arm.parts][:detailed]:
        found.append(profile_section(arm.parts, title=f"Where bytes, FLOPs and time are: {view.shown(arm)}"))
    return [section for section in found if section is not None]


def headline(view: View) -> str:
    """The verdict of the record in a sentence; empty without one."""
    row = view.record.headline
    if row is None:
        return ""
    name, base = view.shown(row.b), view.shown(row.a)
    value, ci = positive(row.ratio), interval(row.ci)
    if value is None:
        return f"{name} against {base}: {row.verdict}. {text(row.reason)}".strip()
    shown = ratio_text(value, ci)
    span = f"{shown} of the time of {base}" if value < 1 else f"{shown} times as long as {base}"
    says = {
        "FASTER": f"{name} is faster: it takes {span}",
        "SLOWER": f"{name} is slower: it takes {span}",
        "SAME": f"{name} and {base} take the same time: {ratio_text(value, ci)}",
        "AMBIGUOUS": f"This run can't tell {name} from {base}: it took {span}",
        "INVALID": f"The comparison of {name} with {base} does not hold",
    }[row.verdict]
    why = text(row.reason)
    return f"{says}, at {text(row.cell, 60)}." + (f" Why: {why}." if why else "")


def warnings(view: View) -> list[str]:
    """What the reader has to know before the figures: the record's own, and what its fields say."""
    record = view.record
    found = [f"{text(item.text)} ({text(item.code, 20)})" for item in record.warnings[:40]]
    if not record.complete:
        ended = text(record.plan.stopped_by) or "unknown"
        found.insert(
            0, f"The run did not finish (ended by: {ended}); the figures are those of what was measured until then."
        )
    found += [f"{view.shown(arm)} could not be run: {text(arm.error)}" for arm in view.arms if arm.error]
    noise = record.env.noise
    if noise.fit == "poor":
        found.append(
            "The machine was not fit for measuring: " + "; ".join(text(reason) for reason in noise.reasons[:5])
        )
    if noise.aa_ci is None:
        found.append("There is no A/A control, so the noise of this run is unknown.")
    if record.plan.interleave == "process":
        found.append(
            "The models did not fit into memory together and took turns process by process; drift weighs more."
        )
    if view.hidden:
        found.append(f"{view.hidden} of {len(record.arms)} models are not shown; the CSV file has them all.")
    broken = [arm for arm in view.arms if not arm.error and any(records([step]) == [] for step in arm.steps)]
    found += [f"{view.shown(arm)}: a step of its recipe is unreadable" for arm in broken]
    return found


def markdown_page(named: Sequence[tuple[str, Record]]) -> str:
    """The Markdown table of each of ``named``, for a comment on a pull request."""
    shown = named[:MOST_RECORDS]
    views = [View(record) for _, record in shown]
    return markdown(shown, [headline(view) for view in views], [warnings(view) for view in views])
