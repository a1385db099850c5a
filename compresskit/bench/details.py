"""What is measured once an arm, after its timed blocks, in the process that they were timed in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.bench import energy
from compresskit.bench.inputs import Work
from compresskit.bench.journal import Journal
from compresskit.bench.prepare import Prepared
from compresskit.bench.scoring import score_arms
from compresskit.bench.worker import read_batches
from compresskit.bench.workers import WorkerSet
from compresskit.errors import CompressKitError

_FIRST_CHOICE = ("logits", "sentence_embedding", "last_hidden_state")


def take_details(prepared: Prepared, workers: WorkerSet, work: Work, journal: Journal) -> None:
    """Write a ``details`` entry for each arm: memory, parameters, operations, parity, energy; then the quality."""
    cell = work.cell
    outputs: dict[str, dict[str, np.ndarray]] = {}
    for number, arm in enumerate(workers.arms):
        found: dict[str, Any] = {"peak": workers.ask(arm, "peak", cell=cell.id)}
        file = prepared.scratch / f"outputs_{number}.npz"
        answer = workers.ask(arm, "outputs", cell=cell.id, file=str(file))
        found["finite"] = answer.get("finite")
        outputs[arm] = read_batches(file)[0] if answer["names"] else {}
        found["parity"] = None
        if arm != prepared.baseline:
            found["parity"] = parity(outputs[prepared.baseline], outputs[arm])
        if arm != prepared.control:
            found["facts"] = _facts(workers, arm, prepared, work)
            found["energy"] = _energy(workers, arm, prepared, work)
        journal.add("details", arm=arm, **found)
    if prepared.options.task is not None:
        score_arms(prepared, workers, journal)
    journal.add("detailed")


def _facts(workers: WorkerSet, arm: str, prepared: Prepared, work: Work) -> dict[str, Any]:
    try:
        return workers.ask(
            arm, "facts", batch=work.cell.batch, tokens=work.cell.length, file=str(prepared.arms[arm].path)
        )
    except CompressKitError as error:
        return {"parameters": None, "macs": None, "reason": error.what}


def _energy(workers: WorkerSet, arm: str, prepared: Prepared, work: Work) -> dict[str, Any]:
    counter, why = energy.counter(prepared.options.device)
    if counter is None:
        return {"reason": why}
    if not prepared.options.asks_for("energy"):
        return {"reason": "it was not asked for: it takes 40 s an arm"}

    def run() -> int:
        return len(workers.ask(arm, "slice", cell=work.cell.id, calls=4, start=0, warm=0)["wall_ms"])

    return {**vars(energy.measure(counter, run)), "counter": counter.name}


def parity(reference: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How far two arms' outputs on the same inputs lie apart: largest and mean difference, mean cosine of rows."""
    name = next(
        (
            name
            for name in _FIRST_CHOICE
            if name in reference and name in other and reference[name].shape == other[name].shape
        ),
        None,
    )
    if name is None:
        return {"reason": "they give no output of the same name and shape"}
    left, right = reference[name].astype(np.float64), other[name].astype(np.float64)
    left, right = left.reshape(-1, left.shape[-1]), right.reshape(-1, right.shape[-1])
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosine = (left * right).sum(1) / np.where(lengths > 0, lengths, 1.0)
    difference = np.abs(left - right)
    values = {
        "max_abs": float(difference.max()),
        "mean_abs": float(difference.mean()),
        "cosine": float(cosine.mean()),
        "rows": len(left),
    }
    if not all(np.isfinite(value) for value in values.values()):
        return {"reason": "the outputs are not all finite"}
    return {"output": name, **values}


def outputs_folder(prepared: Prepared, number: int) -> Path:
    """Where the outputs of arm ``number`` on the task's batches are put."""
    folder = prepared.scratch / f"task_{number}"
    folder.mkdir(exist_ok=True)
    return folder
