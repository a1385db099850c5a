"""hints, attention, minilm and tinybert as methods: a damaged model comes nearer, stays native, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from compresskit.calibrate.batches import random_batches
from compresskit.checkpoint.layout import read_layout
from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.save import save_checkpoint
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.errors import RecipeError
from compresskit.methods.distillation.attention import AttentionMaps
from compresskit.methods.distillation.hints import Hints
from compresskit.methods.distillation.minilm import MiniLM
from compresskit.methods.distillation.tinybert import TinyBert
from compresskit.registry import method
from compresskit.tasks.fidelity import Reference
from tests import models

TEXTS = ["the cat sat on the mat", "a big dog runs fast", "good film we like", "the book is not bad"] * 8
TRAINING = {"steps": 12, "lr": 2e-3, "batch": 16, "max_length": 12, "freeze_embeddings": False}


def damaged(name: str, task: models.Task) -> Any:
    student = models.tiny(name, task=task)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return student


def train(step: Any, teacher: Any, student: Any, work: Path) -> dict[str, Any]:
    context = Context(seed=1, tokenizer=models.tokenizer(), teacher=lambda: teacher, texts=TEXTS, work=work)
    assert step.apply(student, resolve(student, step).sites, context) is None
    (row,) = context.details.values()
    return row


def test_they_are_found_by_their_names() -> None:
    for cls in (Hints, AttentionMaps, MiniLM, TinyBert):
        assert method(f"distillation.{cls.name}") is cls


@pytest.mark.parametrize(
    ("step", "name", "task"),
    [
        (Hints(**TRAINING), "bert", "base"),
        (Hints(**TRAINING, loss="unit", tokens="first"), "distilbert", "base"),
        (Hints(**TRAINING, loss="relative"), "llama", "lm"),
        (AttentionMaps(**TRAINING), "roberta", "base"),
        (AttentionMaps(**TRAINING, on="probabilities"), "gpt2", "lm"),
        (MiniLM(**TRAINING), "bert", "base"),
        (MiniLM(**TRAINING, version="v1", teacher_layer=1), "qwen3", "lm"),
        (TinyBert(**TRAINING), "albert", "base"),
        (TinyBert(**{**TRAINING, "lr": 5e-4}), "bert", "classifier"),
    ],
)
def test_a_damaged_model_comes_nearer_and_stays_native(step: Any, name: str, task: models.Task, tmp_path: Path) -> None:
    teacher, student = models.tiny(name, task=task), damaged(name, task)
    reference = Reference.of(teacher, {"text": random_batches(teacher, samples=16)})
    measure = "cosine_mean" if task == "base" else "kl_mean"
    before = reference.compare(student)[measure]
    row = train(step, teacher, student, tmp_path / "work")
    # The second stage of TinyBERT begins near its end: its batches differ by more than it still gains.
    first = row.get("intermediate", row)
    assert first["last_loss"] < first["first_loss"]
    after = reference.compare(student)[measure]
    # What lies behind the maps isn't trained by them: only the whole-state methods must bring the output nearer.
    if isinstance(step, Hints | TinyBert):
        assert after > before if task == "base" else after < before
    assert read_layout(student) == []
    saved = save_checkpoint(student, tmp_path / "out", source=None, extra_files={}, overwrite=False)
    assert saved.native
    batch = models.inputs(name)
    assert torch.equal(models.output(load_model(saved.path), batch), models.output(student, batch))


def test_the_stages_of_tinybert_share_the_steps(tmp_path: Path) -> None:
    teacher = models.tiny("bert")
    row = train(TinyBert(**{**TRAINING, "steps": 4}, intermediate=0.75), teacher, damaged("bert", "base"), tmp_path)
    assert {stage: note["steps"] for stage, note in row.items()} == {"intermediate": 3, "prediction": 1}
    row = train(TinyBert(**{**TRAINING, "steps": 2}, intermediate=0), teacher, damaged("bert", "base"), tmp_path)
    assert list(row) == ["prediction"]


@pytest.mark.parametrize(
    ("step", "name", "task", "words"),
    [
        (Hints(), "t5", "lm", "two sequences"),
        (MiniLM(), "t5", "lm", "two sequences"),
        (Hints(tokens="first"), "gpt2", "lm", "sees no other"),
        (AttentionMaps(), "llama", "lm", "distillation.minilm"),
        (AttentionMaps(), "t5encoder", "base", "distillation.minilm"),
        (TinyBert(), "gpt2", "lm", "decoder"),
        (TinyBert(), "t5encoder", "base", "bias by distance"),
    ],
)
def test_what_is_refused(step: Any, name: str, task: models.Task, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(models.tiny(name, task=task), step)
    assert words in caught.value.why


def test_bad_options_are_refused() -> None:
    for cls, options in (
        (Hints, {"layers": "first"}),
        (Hints, {"loss": "l1"}),
        (MiniLM, {"version": "v3"}),
        (MiniLM, {"relation_heads": 0}),
        (TinyBert, {"intermediate": 1.5}),
    ):
        with pytest.raises(ValidationError):
            cls.model_validate(options)
