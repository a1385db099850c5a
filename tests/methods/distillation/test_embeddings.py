from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from compresskit.calibrate.batches import random_batches, tokenize
from compresskit.calibrate.text import builtin_texts
from compresskit.core import anatomy, surgery
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.errors import RecipeError
from compresskit.methods.distillation._shared import DEFAULT_STEPS, training_options
from compresskit.methods.distillation.embeddings import Embeddings
from compresskit.registry import method
from compresskit.tasks.fidelity import Reference
from tests import models

TEXTS = ["the cat sat on the mat", "a big dog runs fast", "good film we like", "the book is not bad"] * 8


def test_it_is_found_by_its_name() -> None:
    assert method("distillation.embeddings") is Embeddings


@pytest.mark.parametrize("name", models.ENCODERS)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_damaged_encoder_recovers(name: str, pooling: str, tmp_path: Path) -> None:
    teacher, student = models.tiny(name), models.tiny(name)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    step = Embeddings(steps=12, lr=2e-3, batch=16, max_length=12, pooling=pooling)
    reference = Reference.of(teacher, {"text": random_batches(teacher, samples=16)})
    before = reference.compare(student)["cosine_mean"]
    context = Context(seed=1, tokenizer=models.tokenizer(), teacher=lambda: teacher, texts=TEXTS, work=tmp_path)
    assert step.apply(student, resolve(student, step).sites, context) is None
    assert reference.compare(student)["cosine_mean"] > before
    (row,) = context.details.values()
    assert row["last_loss"] < row["first_loss"]


def test_a_pruned_student_recovers(tmp_path: Path) -> None:
    teacher, student = models.tiny("bert"), models.tiny("bert")
    for ffn in anatomy.of(student).ffns:
        surgery.keep_neurons(student, ffn, torch.arange(64))
    reference = Reference.of(teacher, {"text": random_batches(teacher, samples=16)})
    before = reference.compare(student)["cosine_mean"]
    step = Embeddings(steps=20, lr=2e-3, batch=16, max_length=12)
    context = Context(seed=1, tokenizer=models.tokenizer(), teacher=lambda: teacher, texts=TEXTS, work=tmp_path)
    step.apply(student, resolve(student, step).sites, context)
    assert reference.compare(student)["cosine_mean"] > before
    assert student.encoder.layer[0].intermediate.dense.out_features == 64


@pytest.mark.parametrize(
    ("name", "task"), [("bert", "lm"), ("bert", "classifier"), ("gpt2", "lm"), ("gpt2", "base"), ("t5", "base")]
)
def test_other_models_are_refused_and_told_what_to_use(name: str, task: models.Task) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(models.tiny(name, task=task), Embeddings())
    assert "distillation.logits" in str(caught.value)


def test_without_texts_built_in_ones_are_used(tmp_path: Path) -> None:
    teacher, student = models.tiny("bert"), models.tiny("bert", seed=3)
    step = Embeddings(epochs=1, texts=24, batch=8, max_length=8)
    context = Context(tokenizer=models.tokenizer(), teacher=lambda: teacher, work=tmp_path)
    step.apply(student, resolve(student, step).sites, context)
    (row,) = context.details.values()
    assert (row["texts"], row["steps"]) == (24, 3)


def test_steps_win_over_epochs_and_neither_means_the_default() -> None:
    assert training_options(Embeddings()).steps == DEFAULT_STEPS
    assert training_options(Embeddings(steps=7, epochs=2)).steps == 7
    both = training_options(Embeddings(epochs=2))
    assert (both.steps, both.epochs) == (None, 2)


@pytest.mark.slow
def test_minilm_recovers_on_both_kinds_of_text(minilm_path: Path, tmp_path: Path) -> None:
    """A quarter of the feed-forward neurons removed at random, then some seconds of training."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    teacher, student = (AutoModel.from_pretrained(minilm_path).eval() for _ in range(2))
    for ffn in anatomy.of(student).ffns:
        kept = torch.randperm(ffn.width, generator=torch.Generator().manual_seed(0))[: 3 * ffn.width // 4]
        surgery.keep_neurons(student, ffn, kept.sort().values)
    held = {
        kind: tokenize(builtin_texts(24, split="heldout", kinds=[kind]), tokenizer, teacher, 48)
        for kind in ("documentation", "sentences")
    }
    reference = Reference.of(teacher, held)
    before = reference.compare(student)
    context = Context(tokenizer=tokenizer, teacher=lambda: teacher, work=tmp_path)
    step = Embeddings(steps=25, batch=16, max_length=32)
    step.apply(student, resolve(student, step).sites, replace(context, seed=1))
    after = reference.compare(student)
    for kind in held:
        assert after["domains"][kind]["cosine_mean"] > before["domains"][kind]["cosine_mean"] + 0.02
