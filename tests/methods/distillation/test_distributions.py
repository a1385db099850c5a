"""reverse_kl, skew_kl, gkd and sequence as methods: a damaged model comes nearer, stays native, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from compresskit.calibrate.batches import tokenize
from compresskit.checkpoint.layout import read_layout
from compresskit.core.targets import resolve
from compresskit.errors import RecipeError
from compresskit.methods.distillation.gkd import GKD
from compresskit.methods.distillation.logits import Logits
from compresskit.methods.distillation.reverse_kl import ReverseKL
from compresskit.methods.distillation.sequence import Sequence
from compresskit.methods.distillation.skew_kl import SkewKL
from compresskit.registry import method
from compresskit.tasks.fidelity import Reference
from tests import models
from tests.methods.distillation.training import TEXTS, TRAINING, damaged, train

WRITING: dict[str, Any] = {"prompt": 2, "new_tokens": 6}


def test_they_are_found_by_their_names() -> None:
    for cls in (ReverseKL, SkewKL, GKD, Sequence):
        assert method(f"distillation.{cls.name}") is cls


@pytest.mark.parametrize(
    ("step", "name", "task"),
    [
        (ReverseKL(**TRAINING), "gpt2", "lm"),
        (ReverseKL(**TRAINING, temperature=2.0), "bert", "lm"),
        (ReverseKL(**TRAINING, top_k=64), "llama", "lm"),
        (ReverseKL(**TRAINING), "roberta", "classifier"),
        (SkewKL(**TRAINING), "llama", "lm"),
        (SkewKL(**TRAINING, direction="reverse", top_k=64), "gpt2", "lm"),
        (SkewKL(**TRAINING, alpha=0.3), "t5", "lm"),
        (Logits(**TRAINING, top_k=64), "gpt2", "lm"),
        (GKD(**TRAINING, **WRITING), "gpt2", "lm"),
        (GKD(**TRAINING, **WRITING, share=1, beta=1), "llama", "lm"),
        (GKD(**TRAINING, **WRITING, beta=0, sampling_temperature=0), "t5", "lm"),
        (Sequence(**TRAINING, **WRITING), "gpt2", "lm"),
        (Sequence(**TRAINING, **WRITING, temperature=1.0, samples=4), "llama", "lm"),
    ],
)
def test_a_damaged_model_comes_nearer_and_stays_native(step: Any, name: str, task: models.Task, tmp_path: Path) -> None:
    teacher, student = models.tiny(name, task=task), damaged(name, task)
    reference = Reference.of(teacher, {"text": tokenize(TEXTS[:4], models.tokenizer(), teacher)})
    before = reference.compare(student)["kl_mean"]
    row = train(step, teacher, student, tmp_path)
    assert row["steps"] == 12
    if not isinstance(step, Sequence):
        # A few tokens that were sampled once are not the teacher's distribution: there the loss alone must fall.
        assert reference.compare(student)["kl_mean"] < before
    if not isinstance(step, GKD) or step.share == 0:
        # The student's own texts differ from step to step.
        assert row["last_loss"] < row["first_loss"]
    assert read_layout(student) == []


def test_copies_are_counted(tmp_path: Path) -> None:
    step = Sequence(epochs=1, batch=16, prompt=2, new_tokens=2, temperature=1.0, samples=3)
    row = train(step, models.tiny("gpt2", task="lm"), damaged("gpt2", "lm"), tmp_path)
    assert (row["texts"], row["steps"]) == (96, 6)


def test_gkd_without_a_share_is_logits_bit_by_bit(tmp_path: Path) -> None:
    teacher = models.tiny("gpt2", task="lm")
    students = [damaged("gpt2", "lm") for _ in range(2)]
    train(GKD(**TRAINING, share=0, beta=0, temperature=2.0), teacher, students[0], tmp_path / "gkd")
    train(Logits(**TRAINING, temperature=2.0), teacher, students[1], tmp_path / "logits")
    pairs = zip(students[0].parameters(), students[1].parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)


@pytest.mark.parametrize(
    ("step", "name", "task", "words"),
    [
        (ReverseKL(), "bert", "base", "distillation.embeddings"),
        (SkewKL(), "gpt2", "base", "distillation.embeddings"),
        (ReverseKL(top_k=5), "bert", "classifier", "top_k"),
        (Logits(top_k=5), "gpt2", "classifier", "top_k"),
        (GKD(), "bert", "lm", "fills gaps"),
        (Sequence(), "roberta", "lm", "fills gaps"),
        (GKD(), "gpt2", "base", "no language head"),
        (Sequence(), "gpt2", "classifier", "no language head"),
    ],
)
def test_what_is_refused(step: Any, name: str, task: models.Task, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(models.tiny(name, task=task), step)
    assert words in caught.value.why


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (ReverseKL, {"temperature": 0}),
        (ReverseKL, {"top_k": 0}),
        (SkewKL, {"alpha": 1.0}),
        (SkewKL, {"direction": "both"}),
        (GKD, {"share": 1.5}),
        (GKD, {"beta": -0.1}),
        (GKD, {"prompt": 0}),
        (Sequence, {"beams": 4, "temperature": 1.0}),
        (Sequence, {"samples": 2}),
        (Logits, {"top_k": 5, "policy": "range"}),
    ],
)
def test_bad_options_are_refused(cls: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cls.model_validate(options)
