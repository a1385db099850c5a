"""Measuring points beside their baseline: one interleaved benchmark run, then cosines and further tasks, untimed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskit.bench import quality
from compresskit.bench.options import BenchOptions
from compresskit.bench.record import Metric, Record, write
from compresskit.bench.run import run
from compresskit.checkpoint.source import Source
from compresskit.errors import CompressKitError
from compresskit.suite.arms import Arms, cosines, fidelity_workloads
from compresskit.suite.schema import Suite, TaskSettings

Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Entry:
    """One model in one engine that is to be measured.

    Args:
        name: in the record and the tables.
        spec: what ``bench run`` takes.
        point: the recipe or peer that made it; empty for the source.
        engine: as a reader knows it.
    """

    name: str
    spec: str
    point: str = ""
    engine: str = ""


def measure(
    entries: Sequence[Entry], suite: Suite, source: Source, path: Path, *, resume: bool, tell: Tell
) -> dict[str, Any]:
    """Write the record to ``path``; gives ``record`` (its file's name), ``fidelity`` and ``further`` scores by entry.

    Args:
        entries: the baseline first.

    Raises:
        CompressKitError: the baseline can't be run.
    """
    journal = path.with_suffix(".jsonl")
    record = run(_options(entries, suite), path, resume=resume and journal.exists(), progress=tell)
    record = write(named(record, [entry.name for entry in entries]), path)
    journal.unlink(missing_ok=True)  # its samples are in the record as well
    found: dict[str, Any] = {"record": path.name, "fidelity": {}, "further": {}}
    running = {entry.name: entry.spec for entry in entries if record.arm(entry.name).error is None}
    return found | _outputs(running, suite, source, tell)


def _options(entries: Sequence[Entry], suite: Suite) -> BenchOptions:
    file, first = suite.file, next(iter(suite.tasks), None)
    custom = None if isinstance(file.profile, str) else file.profile.profile()
    return BenchOptions(
        models=tuple(entry.spec for entry in entries),
        profile=file.profile if isinstance(file.profile, str) else "standard",
        custom=custom,
        threads=tuple(file.threads),
        batches=tuple(file.batches),
        lengths=tuple(file.lengths),
        seed=file.seed,
        onnx=False,
        task=first.task if first else None,
        data=Path(first.data) if first else None,
        samples=first.samples if first else None,
        task_options=first.options() if first else {},
    )


def _outputs(specs: Mapping[str, str], suite: Suite, source: Source, tell: Tell) -> dict[str, Any]:
    """Cosines on held-out texts of two kinds, and the tasks after the first, of every model."""
    facts = quality.facts(source.config, source.path)
    tokenizer = source.load_tokenizer()
    domains = fidelity_workloads(tokenizer, facts, seed=suite.file.seed)
    tasks = {task.task: _workload(task, tokenizer, source) for task in suite.tasks[1:]}
    fidelity: dict[str, Any] = {}
    further: dict[str, Any] = {name: {} for name in tasks}
    if not domains and not tasks:
        return {"fidelity": fidelity, "further": further}
    arms = Arms(specs, threads=suite.file.threads[0])
    reference: list[Any] | None = None
    scores: dict[str, Any] = {}
    for number, name in enumerate(specs):
        tell(number / len(specs), f"outputs of {name}")
        try:
            found = arms.run(name, [*domains.values(), *tasks.values()])
        except CompressKitError as error:
            fidelity[name] = {"error": error.what}
            continue
        reference = reference or found
        fidelity[name] = {
            domain: cosines(workload, reference[place], found[place])
            for place, (domain, workload) in enumerate(domains.items())
        }
        for place, (task, workload) in enumerate(tasks.items(), start=len(domains)):
            score = quality.score(workload, found[place])
            base = scores.setdefault(task, score)
            compared = {} if base is score else quality.against(base, score)
            further[task][name] = quality.to_record(score, compared).model_dump(mode="json", exclude={"scores"})
            further[task][name]["details"].pop("statistics", None)
    return {"fidelity": fidelity, "further": further}


def _workload(task: TaskSettings, tokenizer: Any, source: Source) -> Any:
    return quality.prepare(
        task.task, task.data, tokenizer, task.samples, config=source.config, folder=source.path, **task.options()
    )


def named(record: Record, names: Sequence[str]) -> Record:
    """``record`` with ``names`` for its arms but the control, in order; sizes as in-memory peers store them.

    Blocks and comparisons are renamed alike, so that everything can still be recomputed.
    """
    content = record.to_dict()
    arms = [arm["name"] for arm in content["arms"] if arm["role"] != "control"]
    new = dict(zip(arms, names, strict=True))
    new |= {arm["name"]: f"{names[0]} (again)" for arm in content["arms"] if arm["role"] == "control"}
    for arm in content["arms"]:
        arm["name"] = new[arm["name"]]
    for row in content["comparisons"]:
        row["a"], row["b"] = new[row["a"]], new[row["b"]]
    for block in content["blocks"]:
        block["order"] = [new[name] for name in block["order"]]
        for piece in block["slices"]:
            piece["arm"] = new[piece["arm"]]
    found = Record.model_validate({**content, "samples_ref": None})
    return found.model_copy(update={"arms": [_stored(arm) for arm in found.arms]})


def _stored(arm: Any) -> Any:
    """The arm with the size of its quantized state, where the engine says that the files hold something else."""
    stored = arm.engine_details.get("stored_bytes")
    if stored is None:
        return arm
    beside = (arm.metrics["size.served"].value or 0) - (arm.metrics["size.weights"].value or 0)
    sizes = {
        "size.weights": Metric(value=stored, unit="bytes", method="state dict as torch.save writes it"),
        "size.served": Metric(value=stored + beside, unit="bytes", method="state dict, tokenizer and config"),
    }
    return arm.model_copy(update={"metrics": {**arm.metrics, **sizes}})
