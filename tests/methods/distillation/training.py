"""What the tests of these methods train: tiny models, some damaged, on a few texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from compresskit.core.context import Context
from compresskit.core.targets import resolve
from tests import models

TEXTS = ["the cat sat on the mat", "a big dog runs fast", "good film we like", "the book is not bad"] * 8
TRAINING: dict[str, Any] = {"steps": 12, "lr": 2e-3, "batch": 16, "max_length": 12, "freeze_embeddings": False}


def damaged(name: str, task: models.Task = "lm") -> Any:
    """The tiny model of seed 0 with noise on all weights."""
    student = models.tiny(name, task=task)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return student


def train(step: Any, teacher: Any, student: Any, work: Path, **more: Any) -> dict[str, Any]:
    """Apply ``step`` to ``student`` in place; the note that it left."""
    context = Context(seed=1, tokenizer=models.tokenizer(), teacher=lambda: teacher, texts=TEXTS, work=work, **more)
    assert step.apply(student, resolve(student, step).sites, context) is None
    (row,) = context.details.values()
    note: dict[str, Any] = row
    return note
