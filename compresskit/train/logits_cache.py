"""A teacher's logits of labelled rows, run once and kept on disk: float16, memory-mapped, found again by a digest.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.core import processes
from compresskit.errors import DataError
from compresskit.train.labelled import Collate, logits_of
from compresskit.train.teacher_cache import model_digest


def cached_logits(teacher: PreTrainedModel, rows: Sequence[Any], collate: Collate, folder: Path) -> Tensor:
    """Logits of ``rows``, (N, C) float32, from ``folder`` where the same teacher has seen the same rows before.

    Raises:
        DataError: CK-D024, logits that aren't finite.
    """
    path = folder / f"logits-{_digest(teacher, rows)}.npy"

    def make() -> None:
        if path.exists():
            return
        found = logits_of(teacher, rows, collate).numpy()
        largest = float(np.abs(found).max())
        if not np.isfinite(largest):
            raise DataError(
                "CK-D024",
                "the teacher gives values that aren't finite, or too large for its cache",
                fix="load the teacher in float32, and check that its weights are whole",
            )
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part.npy")
        np.save(draft, found.astype(np.float16 if largest < 6e4 else np.float32))
        os.replace(draft, path)

    processes.lead(make)
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    return torch.from_numpy(np.array(mapped, dtype=np.float32))


def _digest(teacher: PreTrainedModel, rows: Sequence[Any]) -> str:
    digest = hashlib.blake2b(model_digest(teacher), digest_size=16)
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()
