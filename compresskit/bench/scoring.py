"""Quality beside speed: every arm runs the task in the process that it was timed in; those outputs are scored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compresskit.bench.journal import Journal
from compresskit.bench.worker import read_batches, write_batches
from compresskit.bench.workers import WorkerSet
from compresskit.errors import CompressKitError

if TYPE_CHECKING:
    from compresskit.bench.prepare import Prepared

_HOURS = 6 * 3600.0


def score_arms(prepared: Prepared, workers: WorkerSet, journal: Journal) -> None:
    """Write a ``quality`` entry for each arm but the control."""
    from compresskit.bench import quality

    options, baseline = prepared.options, prepared.arms[prepared.baseline]
    if options.task is None or options.data is None:
        return
    workload = quality.prepare(
        options.task,
        options.data,
        prepared.tokenizer,
        options.samples,
        config=baseline.config,
        folder=baseline.tokenizer,
        **options.task_options,
    )
    file = prepared.scratch / "task.npz"
    write_batches(file, workload.batches)
    reference: Any = None
    for number, arm in enumerate(name for name in workers.arms if name != prepared.control):
        folder = prepared.scratch / f"task_{number}"
        folder.mkdir(exist_ok=True)
        try:
            spent = workers.ask(
                arm,
                "workload",
                timeout=_HOURS,
                file=str(file),
                out=str(folder),
                reduce=getattr(workload, "reduce", None),
            )
            found = quality.score(workload, read_outputs(folder, len(workload.batches)))
        except CompressKitError as error:
            if arm == baseline.name:
                raise
            journal.add("quality", arm=arm, quality=_failed(options.task, error.what))
            continue
        against = {} if reference is None else quality.against(reference, found)
        reference = found if reference is None else reference
        content = quality.to_record(found, against).model_dump(mode="json")
        content["details"] = {**content.get("details", {}), "run_ms": sum(spent["wall_ms"])}
        journal.add("quality", arm=arm, data_hash=workload.data_hash, quality=content)


def read_outputs(folder: Path, count: int) -> list[dict[str, np.ndarray]]:
    """The outputs of each batch, as the worker wrote them."""
    return [(read_batches(folder / f"{number}.npz") or [{}])[0] for number in range(count)]


def _failed(task: str, why: str) -> dict[str, Any]:
    return {"task": task, "metric": "", "status": "unavailable", "reason": why}
