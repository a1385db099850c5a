"""From the journal to the record."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from compresskit import __version__
from compresskit.bench.analysis import metrics_of
from compresskit.bench.blocks import Block
from compresskit.bench.comparisons import Rules, compare_arms
from compresskit.bench.journal import Journal
from compresskit.bench.prepare import Prepared
from compresskit.bench.record import (
    Arm,
    Comparison,
    Metric,
    ModelInfo,
    Notice,
    NotMeasured,
    Plan,
    Quality,
    Record,
    unavailable,
)
from compresskit.bench.sizes import sizes
from compresskit.bench.subjects import Subject

FLAGGED = 0.1
"""Share of disturbed samples from which a notice is given."""


def assemble(
    prepared: Prepared,
    journal: Journal,
    *,
    complete: bool,
    stopped_by: str,
    failed: dict[str, str],
    parent_cpu_share: float | None,
    samples_ref: str | None,
) -> Record:
    """The record of what the journal holds; everything but the blocks is computed from it."""
    options, blocks = prepared.options, journal.blocks()
    cells = [work.cell for work in prepared.works]
    rules = Rules(level=options.level, delta=options.delta, seed=options.seed)
    comparisons, noise = compare_arms(
        blocks,
        cells,
        prepared.baseline,
        prepared.control,
        prepared.others,
        headline=cells[0].id,
        device=options.device,
        rules=rules,
    )
    arms = [_arm(name, subject, prepared, journal, blocks, failed.get(name)) for name, subject in prepared.arms.items()]
    comparisons = [_checked(row, journal) for row in comparisons]
    data = journal.find("quality") or {}
    return Record(
        complete=complete,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        command=command(prepared),
        env=prepared.env.model_copy(update={"noise": noise}),
        plan=Plan(
            profile=options.profile,
            device=options.device,
            interleave=_interleave(prepared),
            seed=options.seed,
            replicates=len({block.process for block in blocks}) or options.stop.replicates[0],
            slice_seconds=options.stop.slice_seconds,
            delta=options.delta,
            level=options.level,
            stop=options.stop.rule,
            stopped_by=stopped_by,
            cells=cells,
            headline=cells[0].id,
            task=options.task,
            data_hash=data.get("data_hash"),
        ),
        arms=arms,
        comparisons=comparisons,
        blocks=blocks,
        samples_ref=samples_ref,
        warnings=[*prepared.notices, *_notices(arms, blocks, prepared, complete=complete)],
        not_measured=[*prepared.not_measured, *_missing(prepared)],
        parent_cpu_share=parent_cpu_share,
    )


def command(prepared: Prepared) -> list[str]:
    """What reproduces the run, without folders."""
    options = prepared.options
    words = ["compresskit", "bench", "run", *(subject.label for subject in _asked(prepared))]
    words += ["--profile", options.profile, "--device", options.device, "--seed", str(options.seed)]
    words += ["--threads", ",".join(map(str, dict.fromkeys(work.cell.threads for work in prepared.works)))]
    words += ["--scenario", ",".join(_scenarios(prepared))]
    words += ["--batch", ",".join(map(str, options.batches))]
    words += ["--length", ",".join(map(str, dict.fromkeys(work.cell.length for work in prepared.works)))]
    words += ["--dtype", options.dtype] if options.dtype else []
    words += ["--new-tokens", str(options.new_tokens)] if "decode" in _scenarios(prepared) else []
    words += [] if options.control else ["--no-control"]
    if options.engine:
        words += ["--engine", options.engine]
    if options.task and options.data:
        words += ["--task", options.task, "--data", options.data.name]
    return words


def _scenarios(prepared: Prepared) -> list[str]:
    return list(dict.fromkeys(work.cell.scenario for work in prepared.works))


def _asked(prepared: Prepared) -> list[Subject]:
    exported = "exported from "
    return [
        subject
        for name, subject in prepared.arms.items()
        if name != prepared.control and not subject.fingerprint.startswith(exported)
    ]


def _interleave(prepared: Prepared) -> Any:
    if not prepared.resident:
        return "process"
    return "block-abba" if len(prepared.arms) == 2 else "block-permutation"


def _arm(
    name: str, subject: Subject, prepared: Prepared, journal: Journal, blocks: Sequence[Block], error: str | None
) -> Arm:
    started = [entry for entry in journal.entries if entry["kind"] == "started" and entry["arm"] == name]
    details = journal.find("details", arm=name) or {}
    quality = journal.find("quality", arm=name)
    role = "baseline" if name == prepared.baseline else "control" if name == prepared.control else "candidate"
    measured = {} if error else {
        work.cell.id: metrics_of(blocks, work.cell, name, level=prepared.options.level) for work in prepared.works
    }  # fmt: skip
    facts = details.get("facts") or (journal.find("details", arm=prepared.baseline) or {}).get("facts") or {}
    engine = dict(started[-1]["facts"]["details"]) if started else {}
    engine["not_counted"] = facts.get("not_counted", [])
    return Arm(
        name=name,
        role=role,
        engine=subject.engine,
        dtype=str(engine.get("dtype", "")),
        model=ModelInfo(
            source=subject.label,
            revision=subject.revision,
            architecture=subject.architecture,
            files=subject.files,
            fingerprint=subject.fingerprint,
            compressed=subject.compressed,
        ),
        recipe=subject.recipe,
        metrics=arm_metrics(subject, started, details, facts) | _uncached(journal.find("cold", arm=name)),
        cells=measured,
        quality=Quality.model_validate(quality["quality"]) if quality else None,
        parts=facts.get("parts") or [],
        steps=subject.steps,
        engine_details=engine,
        error=error,
    )


def arm_metrics(
    subject: Subject, started: Sequence[dict[str, Any]], details: dict[str, Any], facts: dict[str, Any]
) -> dict[str, Metric]:
    """What doesn't depend on the shape of work: size, parameters, operations, cold start, memory, parity, energy."""
    found = sizes(subject)
    found |= _counts(facts)
    found |= _cold_start([entry["facts"] for entry in started])
    found |= _memory([entry["facts"] for entry in started], details.get("peak") or {})
    found |= _parity(details.get("parity"))
    found |= _energy(details.get("energy"), subject)
    return found


def _counts(facts: dict[str, Any]) -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    counted, reason = facts.get("parameters") or {}, facts.get("reason") or "it can't be told from the file"
    for name, unit in (
        ("logical", "numbers"),
        ("stored", "numbers"),
        ("nonzero", "numbers"),
        ("bytes", "bytes"),
        ("effective_bits", "bits"),
    ):
        value = counted.get(name)
        found[f"parameters.{name}"] = (
            unavailable(unit, reason)
            if value is None
            else Metric(value=value, unit=unit, status="derived", method="layers of the loaded model")
        )
    macs = facts.get("macs") or {}
    for name, factor, unit in (("macs", 1, "MAC"), ("flops", 2, "FLOP (2 a MAC)")):
        for kind in ("effective", "dense"):
            found[f"compute.{name}_{kind}"] = (
                Metric(value=factor * macs[kind], unit=unit, status="derived", method="formula over shapes, one call")
                if kind in macs
                else unavailable(unit, reason)
            )
    return found


def _cold_start(facts: Sequence[dict[str, Any]]) -> dict[str, Metric]:
    found = {}
    for name, key in (("import", "import_s"), ("load", "load_s"), ("first_call", "first_call_s")):
        values = [float(entry[key]) for entry in facts if entry.get(key) is not None]
        at_once = max((entry.get("loading_at_once", 1) for entry in facts), default=1)
        found[f"cold_start.{name}"] = (
            Metric(
                value=statistics.median(values),
                unit="s",
                ci=None,
                n=len(values),
                method=f"median over processes, {at_once} loading at once, files in the page cache",
            )
            if values
            else unavailable("s", "no worker was started")
        )
    return found


def _uncached(entry: dict[str, Any] | None) -> dict[str, Metric]:
    name = "cold_start.load_uncached"
    if entry is None or not entry["dropped"]:
        return {name: unavailable("s", "only standard and publish measure it, and where the system drops cached files")}
    method = "one process alone, files dropped from the page cache (POSIX_FADV_DONTNEED)"
    return {name: Metric(value=entry["load_s"], unit="s", n=1, method=method)}


def _memory(facts: Sequence[dict[str, Any]], peak: dict[str, Any]) -> dict[str, Metric]:
    first = facts[0] if facts else {}
    wanted = {
        "memory.imported": (first.get("rss_imported_mib"), "VmRSS after importing the engine"),
        "memory.loaded": (first.get("rss_loaded_mib"), "VmRSS after loading"),
        "memory.peak_load": (first.get("peak_load_mib"), "VmHWM, reset before loading"),
        "memory.peak_run": (peak.get("peak_mib"), "VmHWM, reset before the call"),
        "memory.rss": (peak.get("rss_mib"), "VmRSS after the calls"),
        "memory.pss": (peak.get("pss_mib"), "Pss: shared pages divided"),
    }
    found = {
        name: unavailable("MiB", "the system doesn't tell")
        if value is None
        else Metric(value=value, unit="MiB", method=how)
        for name, (value, how) in wanted.items()
    }
    for name, value in (peak.get("device_mib") or {}).items():
        found[f"memory.device_{name}"] = (
            unavailable("MiB", "NVML doesn't tell")
            if value is None
            else Metric(value=value, unit="MiB", method={"driver": "NVML"}.get(name, "torch's allocator"))
        )
    return found


def _parity(values: dict[str, Any] | None) -> dict[str, Metric]:
    if not values:
        return {}
    names = {"max_abs": "", "mean_abs": "", "cosine": ""}
    if "reason" in values:
        return {f"parity.{name}": unavailable(unit, values["reason"]) for name, unit in names.items()}
    method = f"{values['output']} against the baseline's on one input"
    return {
        f"parity.{name}": Metric(value=values[name], unit=unit, n=values["rows"], method=method)
        for name, unit in names.items()
    }


def _energy(values: dict[str, Any] | None, subject: Subject) -> dict[str, Metric]:
    if values and "joules_per_call" in values:
        method = f"{values['counter']}, idle {values['idle_watts']:.1f} W subtracted, {values['seconds']:.0f} s"
        call = Metric(value=values["joules_per_call"], unit="J", n=values["calls"], method=method)
        return {
            "energy.call": call,
            "energy.idle": Metric(value=values["idle_watts"], unit="W", method=values["counter"]),
        }
    reason = (values or {}).get("reason") or "it was not measured for this arm"
    return {"energy.call": unavailable("J", reason), "energy.idle": unavailable("W", reason)}


def _checked(row: Comparison, journal: Journal) -> Comparison:
    """INVALID where the other arm's outputs are not finite: a broken model may be fast."""
    details = journal.find("details", arm=row.b) or {}
    if details.get("finite") is False:
        return row.model_copy(update={"verdict": "INVALID", "reason": "its outputs are not all finite"})
    return row


def _notices(arms: Sequence[Arm], blocks: Sequence[Block], prepared: Prepared, *, complete: bool) -> list[Notice]:
    found = []
    if not complete:
        found.append(
            Notice(code="CK-B018", text="the run was interrupted: figures rest on what was measured until then")
        )
    found += [Notice(code="CK-B007", text=f"{arm.name} could not be run: {arm.error}") for arm in arms if arm.error]
    flags = [flag for block in blocks for part in block.slices for flag in part.flags]
    disturbed = sum(flag > 0 for flag in flags)
    if flags and disturbed > FLAGGED * len(flags):
        share = 100 * disturbed / len(flags)
        found.append(
            Notice(code="CK-B023", text=f"{share:.0f} % of samples were disturbed by other processes; none is left out")
        )
    for arm in arms:
        hashes = {
            part.output_hash for block in blocks for part in block.slices if part.arm == arm.name and block.number == 0
        }
        cells = {block.cell for block in blocks}
        if len(hashes) > len(cells):
            found.append(Notice(code="CK-B024", text=f"{arm.name} gave different outputs for the same input"))
    if any(part.throttled for block in blocks for part in block.slices):
        found.append(Notice(code="CK-B025", text="the device was throttled during some slices"))
    if any(work.cell.text.startswith("random") for work in prepared.works):
        found.append(Notice(code="CK-B026", text="the inputs are random token ids, not text"))
    return found


def _missing(prepared: Prepared) -> list[NotMeasured]:
    scenarios = {work.cell.scenario for work in prepared.works}
    found = []
    if "offline" not in scenarios:
        found.append(NotMeasured(what="offline throughput", why="the scenario was not asked for"))
    if len({work.cell.threads for work in prepared.works}) == 1:
        threads = prepared.works[0].cell.threads
        found.append(NotMeasured(what=f"other numbers of threads than {threads}", why="they were not asked for"))
    if prepared.options.device == "cpu":
        found.append(NotMeasured(what="a GPU", why="the run was on the CPU"))
    return found
