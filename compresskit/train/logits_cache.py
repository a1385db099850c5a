"""A teacher's logits of labelled rows, run once and kept on disk: float16, memory-mapped, found again by a digest.

Shapes: N rows, M positions, C classes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.core import processes
from compresskit.errors import DataError
from compresskit.train.labelled import Collate, Labelled, logits_of
from compresskit.train.positions import Positions, run_positions, targets_at
from compresskit.train.teacher_cache import model_digest


def cached_logits(teacher: PreTrainedModel, rows: Sequence[Any], collate: Collate, folder: Path) -> Tensor:
    """Logits of ``rows``, (N, C) float32, from ``folder`` where the same teacher has seen the same rows before.

    Raises:
        DataError: CK-D024, logits that aren't finite.
    """
    return cached(folder / f"logits-{_digest(teacher, rows)}.npy", lambda: logits_of(teacher, rows, collate))


def cached_positions(
    teacher: PreTrainedModel, data: Labelled, positions: Positions, folder: Path, top_k: int | None
) -> tuple[Tensor, Tensor | None]:
    """Targets of all positions and the words that they are of, as of ``targets_at``, kept like ``cached_logits``."""
    name = f"{_digest(teacher, data.rows)}-{'all' if top_k is None else top_k}.npy"
    made: dict[str, Tensor] = {}

    def make(part: str) -> Tensor:
        if not made:
            parts = run_positions(teacher, data.rows, data.collate, positions, data.length)
            made.update(targets_at(parts, len(data.labels), top_k))
        return made[part]

    logits = cached(folder / f"positions-{name}", lambda: make("logits"))
    if logits.shape[1] != (top_k or 0) + 1:
        return logits, None
    return logits, cached(folder / f"words-{name}", lambda: make("words")).long()


def cached(path: Path, compute: Callable[[], Tensor]) -> Tensor:
    """What ``compute`` gives, as float32, or int32 of whole numbers; from ``path`` where it is there.

    Raises:
        DataError: CK-D024, values that aren't finite.
    """

    def make() -> None:
        if path.exists():
            return
        found = compute().numpy()
        largest = float(np.abs(found).max())
        if not np.isfinite(largest):
            raise DataError(
                "CK-D024",
                "the teacher gives values that aren't finite, or too large for its cache",
                fix="load the teacher in float32, and check that its weights are whole",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part.npy")
        if found.dtype.kind == "i":
            np.save(draft, found.astype(np.int32))
        else:
            np.save(draft, found.astype(np.float16 if largest < 6e4 else np.float32))
        os.replace(draft, path)

    processes.lead(make)
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    return torch.from_numpy(np.array(mapped, dtype=np.int32 if mapped.dtype.kind == "i" else np.float32))


def _digest(teacher: PreTrainedModel, rows: Sequence[Any]) -> str:
    digest = hashlib.blake2b(model_digest(teacher), digest_size=16)
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()
