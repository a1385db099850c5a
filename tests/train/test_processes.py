"""Two processes train as one that accumulates two batches does, and only the first of them writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from compresskit.core import processes
from compresskit.errors import UsageError
from compresskit.train import labelled, logits_cache, loop, teacher_cache
from compresskit.train.labelled import FitOptions, Labelled, fit
from compresskit.train.logits_cache import cached_logits
from compresskit.train.objective import EmbeddingObjective, Objective, ResponseObjective
from compresskit.train.policies import Curriculum, Exponential, Policy
from compresskit.train.recovery import recover
from tests import models
from tests.children import together
from tests.train.test_labelled import data, model
from tests.train.test_recovery import OPTIONS, TEXTS, context_for, damage

__all__ = ["data"]

TEXTS = TEXTS[:40]
"""Three batches of 16 a pass, the last one smaller: neither a whole number of batches nor of steps."""

Training = Callable[[Path], PreTrainedModel]


def curve(training: Training, work: Path, result: Path) -> None:
    """Train, and note the loss of each step, the weights, and how often the teacher was run over the data."""
    losses: list[float] = []
    fills: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for part in (loop.Loop, labelled._Run):
            observe = part.observe

            def note(self: Any, loss: float, observe: Any = observe) -> None:
                losses.append(loss)
                observe(self, loss)

            patch.setattr(part, "observe", note)
        for module, name in ((teacher_cache, "_fill"), (logits_cache, "logits_of")):
            fill = getattr(module, name)

            def count(*given: Any, fill: Any = fill, name: str = name) -> Any:
                fills.append(name)
                return fill(*given)

            patch.setattr(module, name, count)
        trained = training(work)
    result.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in trained.named_parameters()}, result / "weights")
    (result / "notes.json").write_text(json.dumps({"losses": losses, "fills": len(fills)}))


def recovery(name: str, task: models.Task, objective: Callable[[], Objective]) -> Callable[[int], Training]:
    def prepare(accumulation: int) -> Training:
        options = replace(OPTIONS, steps=4, accumulation=accumulation, save_every=3)

        def train(work: Path) -> PreTrainedModel:
            student = damage(models.tiny(name, task=task))
            if processes.index():
                damage(student)  # the first one's weights count
            recover(student, context_for(models.tiny(name, task=task), work), objective(), TEXTS, options)
            return student

        return train

    return prepare


def labels(rows: Labelled, policy: Callable[[], Policy], batches: int = 1) -> Callable[[int], Training]:
    """Training with ``policy``, in steps of ``batches`` in each of two processes."""

    def prepare(accumulation: int) -> Training:
        options = FitOptions(epochs=3, batch=10 // batches, lr=1e-2, accumulation=batches * accumulation, save_every=4)

        def train(work: Path) -> PreTrainedModel:
            student = model()
            student.dropout.p = 0.0
            scores = iter([0.1, 0.3, 0.2])
            targets = cached_logits(model(1), rows.rows, rows.collate, work)
            fit(student, rows, options, targets=targets, policy=policy(), score=lambda _: next(scores), folder=work)
            return student

        return train

    return prepare


@pytest.mark.parametrize("case", ["embeddings", "logits", "midtd", "curriculum"])
def test_two_processes_train_as_one_that_accumulates(case: str, data: Labelled, tmp_path: Path) -> None:
    prepare = {
        "embeddings": recovery("bert", "base", EmbeddingObjective),
        "logits": recovery("gpt2", "lm", ResponseObjective),
        "midtd": labels(data, Exponential),
        "curriculum": labels(data, Curriculum, batches=2),
    }[case]
    curve(prepare(2), tmp_path / "alone", tmp_path / "one")
    work = tmp_path / "shared"
    ends = together(2, lambda: curve(prepare(1), work, tmp_path / str(processes.index())))
    assert ends == [0, 0]
    one, *two = (json.loads((tmp_path / name / "notes.json").read_text()) for name in ("one", "0", "1"))
    assert len(one["losses"]) >= 4
    for found in two:
        assert found["losses"] == pytest.approx(one["losses"], abs=1e-4)
    assert [found["fills"] for found in (one, *two)] == [1, 1, 0], "the first one alone runs the teacher"
    expected = load_file(tmp_path / "one" / "weights")
    for number in ("0", "1"):
        weights = load_file(tmp_path / number / "weights")
        assert all(torch.allclose(weights[name], expected[name], atol=1e-4) for name in expected)


def test_a_process_that_has_not_joined_the_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.TrainingArguments.world_size", 2)
    with pytest.raises(UsageError) as caught:
        recovery("bert", "base", EmbeddingObjective)(1)(tmp_path)
    assert caught.value.code == "CK-D092"
