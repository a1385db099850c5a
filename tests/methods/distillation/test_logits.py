from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compresskit.calibrate.batches import tokenize
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.errors import RecipeError
from compresskit.methods.distillation.logits import Logits
from compresskit.registry import method
from compresskit.tasks.fidelity import Reference
from tests import models

LANGUAGE = [name for name in models.FAMILIES if "lm" in models.tasks(name)]
TEXTS = ["the cat sat on the mat", "a big dog runs fast", "good film we like", "the book is not bad"] * 8


def context_for(teacher: torch.nn.Module, folder: Path) -> Context:
    return Context(seed=1, tokenizer=models.tokenizer(), teacher=lambda: teacher, texts=TEXTS, work=folder)


def test_it_is_found_by_its_name() -> None:
    assert method("distillation.logits") is Logits


@pytest.mark.parametrize(
    ("name", "task"), [(name, "lm") for name in LANGUAGE] + [("bert", "classifier"), ("gpt2", "classifier")]
)
def test_a_damaged_model_recovers(name: str, task: models.Task, tmp_path: Path) -> None:
    teacher, student = models.tiny(name, task=task), models.tiny(name, task=task)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    step = Logits(steps=12, lr=2e-3, batch=16, max_length=12, temperature=1.0)
    sites = resolve(student, step).sites
    assert [site.kind for site in sites] == ["model"]
    reference = Reference.of(teacher, {"text": tokenize(TEXTS[:4], models.tokenizer(), teacher)})
    before = reference.compare(student)["kl_mean"]
    context = context_for(teacher, tmp_path)
    assert step.apply(student, sites, context) is None
    assert reference.compare(student)["kl_mean"] < before
    (row,) = context.details.values()
    assert row["steps"] == 12
    assert row["last_loss"] < row["first_loss"]


@pytest.mark.parametrize("name", models.FAMILIES)
def test_a_base_model_is_refused_and_told_what_to_use(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(models.tiny(name), Logits())
    assert "distillation.embeddings" in str(caught.value)


def test_a_model_of_integers_is_refused() -> None:
    model = models.tiny("bert", task="lm").requires_grad_(False)
    with pytest.raises(RecipeError, match="integers or frozen"):
        resolve(model, Logits())


@pytest.mark.parametrize("options", [{"temperature": 0}, {"steps": 0}, {"lr": -1}, {"tempreature": 2}, {"batch": 0}])
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Logits(**options)


@pytest.mark.parametrize("policy", ["exp", "range", "standardized", "dtkd", "annealed", "curriculum"])
def test_each_policy_of_temperatures_trains(policy: str, tmp_path: Path) -> None:
    teacher, student = models.tiny("bert", task="classifier"), models.tiny("bert", 1, task="classifier")
    before = [parameter.detach().clone() for parameter in student.parameters()]
    step = Logits(steps=12, lr=2e-3, batch=16, max_length=12, policy=policy)  # type: ignore[arg-type]
    context = context_for(teacher, tmp_path)
    step.apply(student, resolve(student, step).sites, context)
    (row,) = context.details.values()
    assert row["last_loss"] < row["first_loss"]
    assert any(not torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True))
