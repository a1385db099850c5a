"""Further outputs of a suite's models: each runs batches in a fresh process, untimed, in the engine it was timed in."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.bench.engines.base import Arrays
from compresskit.bench.pool import STARTING, WorkerProcess
from compresskit.bench.scoring import read_outputs
from compresskit.bench.subjects import Subject, find
from compresskit.bench.worker import write_batches
from compresskit.calibrate.text import builtin_texts
from compresskit.tasks import Facts, Options, Workload
from compresskit.tasks.embedding import embeddable, embedding_reduction, unit_length
from compresskit.tasks.workload import fill_of, padded, rows_of_texts

DOMAINS = ("documentation", "everyday")
TEXTS = 128
_HOURS = 6 * 3600.0


class Arms:
    """Models by name, each loaded once to run several workloads.

    Args:
        specs: name -> what ``bench run`` takes, the baseline first.
    """

    def __init__(self, specs: Mapping[str, str], *, threads: int) -> None:
        self.subjects: dict[str, Subject] = dict(zip(specs, find(list(specs.values()), None), strict=True))
        self.threads = threads

    def run(self, name: str, workloads: Sequence[Workload]) -> list[list[dict[str, np.ndarray]]]:
        """The reduced outputs of each workload's batches.

        Raises:
            CompressKitError: the model can't be run.
        """
        subject = self.subjects[name]
        worker = WorkerProcess(name, threads=self.threads, device="cpu")
        try:
            worker.ask(
                "load", timeout=STARTING, name=subject.engine, path=str(subject.path), threads=self.threads,
                device="cpu", dtype=None,
            )  # fmt: skip
            return [_run(worker, workload) for workload in workloads]
        finally:
            worker.close()


def _run(worker: WorkerProcess, workload: Workload) -> list[dict[str, np.ndarray]]:
    with tempfile.TemporaryDirectory(prefix="compresskit-suite-") as name:
        folder = Path(name)
        write_batches(folder / "task.npz", workload.batches)
        (folder / "out").mkdir()
        worker.ask(
            "workload", timeout=_HOURS, file=str(folder / "task.npz"), out=str(folder / "out"), reduce=workload.reduce
        )
        return read_outputs(folder / "out", len(workload.batches))


def fidelity_workloads(tokenizer: Any, facts: Facts, *, seed: int) -> dict[str, Workload]:
    """Held-out built-in texts of each kind; none for models that give no embeddings."""
    if not embeddable(facts) or tokenizer is None:
        return {}
    found = {}
    for domain in DOMAINS:
        texts = builtin_texts(TEXTS, seed, split="heldout", kinds=(domain,))
        rows = rows_of_texts(texts, tokenizer, facts, min(128, facts.longest_text))
        batches, order = padded(rows, Options().batch_size, fill_of(tokenizer))
        found[domain] = Workload("fidelity", batches, embedding_reduction(facts), order, {}, len(texts))
    return found


def cosines(workload: Workload, reference: Sequence[Arrays], other: Sequence[Arrays]) -> dict[str, float]:
    """Mean and least cosine of the embeddings of each text."""
    left, right = (unit_length(workload.rows_of(each, "embedding").astype(np.float64)) for each in (reference, other))
    found = (left * right).sum(-1)
    return {"mean": float(found.mean()), "min": float(found.min())}
