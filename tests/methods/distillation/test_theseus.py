"""Module replacing as a method: a native shallower model, near to the one it replaces, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compresskit.calibrate.batches import tokenize
from compresskit.checkpoint.layout import read_layout
from compresskit.core import anatomy, surgery
from compresskit.core.targets import resolve
from compresskit.errors import RecipeError
from compresskit.methods.distillation.theseus import Theseus
from compresskit.tasks.fidelity import Reference
from tests import models
from tests.methods.distillation.training import TEXTS, TRAINING, train


@pytest.mark.parametrize(("name", "task"), [("bert", "base"), ("llama", "lm"), ("distilbert", "classifier")])
def test_it_ends_as_a_native_shallower_model(name: str, task: models.Task, tmp_path: Path) -> None:
    model = models.tiny(name, task=task)
    held = tokenize(TEXTS[:4], models.tokenizer(), model)
    reference = Reference.of(model, {"text": held})
    cut = models.tiny(name, task=task)
    step = Theseus(layers=2, **{**TRAINING, "steps": 20})
    saving = step.predicted_saving(model, resolve(model, step).sites)
    before = sum(parameter.numel() * 4 for parameter in model.parameters())
    note = train(step, None, model, tmp_path)
    surgery.sync_config(model)
    assert read_layout(model) == []
    assert model.config.num_hidden_layers == 2
    assert sum(parameter.numel() * 4 for parameter in model.parameters()) == before - saving
    assert (note["begun_with"], note["of"], note["steps"]) == ([0, 1], 3, 20)
    assert all("forward" not in vars(module) for module in model.modules())
    surgery.keep_blocks(cut, anatomy.of(cut).stacks[0], [0, 1])
    metric, sign = ("cosine_mean", 1) if task == "base" else ("kl_mean", -1)
    assert sign * reference.compare(model)[metric] > sign * reference.compare(cut)[metric]


def test_equal_seeds_give_equal_students(tmp_path: Path) -> None:
    students = [models.tiny("bert") for _ in range(2)]
    for number, student in enumerate(students):
        train(Theseus(layers=1, **{**TRAINING, "steps": 3}), None, student, tmp_path / str(number))
    first, second = (student.state_dict() for student in students)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_half_precision_stays(tmp_path: Path) -> None:
    model = models.tiny("bert").to(torch.bfloat16)
    before = model.encoder.layer[0].output.dense.weight.detach().clone()
    train(Theseus(layers=1, **{**TRAINING, "steps": 3}), None, model, tmp_path)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
    assert not torch.equal(model.encoder.layer[0].output.dense.weight, before)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("t5", {}, "more than one stack"),
        ("t5encoder", {}, "block 0 of T5EncoderModel can't be replaced"),
        ("bert", {"layers": 3}, "as many"),
        ("albert", {}, "block 0 of AlbertModel can't be replaced"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, int], why: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(models.tiny(name, task="lm" if name == "t5" else "base"), Theseus(**options))
    assert why in caught.value.why
