"""Students made of their teacher: which blocks, which neurons, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from compresskit.checkpoint.layout import read_layout
from compresskit.core import anatomy, surgery
from compresskit.core.context import Context
from compresskit.core.cutting import chosen
from compresskit.core.targets import resolve
from compresskit.errors import RecipeError
from compresskit.methods.distillation.layer_init import LayerInit
from compresskit.numerics.importance import top_indices, wanda
from tests import models


def make(name: str, task: models.Task = "base", **options: Any) -> tuple[Any, dict[str, Any], int | None]:
    model, step = models.tiny(name, task=task), LayerInit(**options)
    batches = [models.inputs(name, batch=4, length=12, seed=seed) for seed in range(2)]
    context = Context(seed=1, calibration=batches)
    sites = resolve(model, step).sites
    saving = step.predicted_saving(model, sites)
    step.apply(model, sites, context)
    surgery.sync_config(model)
    return model, context.details, saving


def test_which_blocks() -> None:
    assert chosen("spread", 3, 12) == [0, 6, 11]
    assert chosen("spread", 1, 12) == [0]
    assert chosen("first", 3, 12) == [0, 1, 2]
    assert chosen("last", 3, 12) == [9, 10, 11]
    assert chosen("ends", 3, 12) == [0, 1, 11]
    assert chosen("ends", 4, 12) == [0, 1, 10, 11]
    assert chosen("ends", 1, 12) == [0]
    assert chosen("last", 20, 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0]),
        ({"layers": 2}, [0, 2]),
        ({"layers": 2, "choose": "last"}, [1, 2]),
        ({"layers": (1,)}, [1]),
    ],
)
def test_the_blocks_are_the_teachers(options: dict[str, Any], kept: list[int]) -> None:
    teacher, (student, details, _) = models.tiny("bert"), make("bert", **options)
    assert read_layout(student) == []
    assert len(student.encoder.layer) == len(kept)
    for block, index in zip(student.encoder.layer, kept, strict=True):
        theirs = teacher.encoder.layer[index].state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in block.state_dict().items())
    assert details["encoder.layer"] == {"kept": kept, "of": 3}


@pytest.mark.parametrize(("name", "task"), [("bert", "base"), ("llama", "lm"), ("t5", "lm"), ("albert", "base")])
def test_narrower_networks_save_what_was_predicted(name: str, task: models.Task) -> None:
    before = sum(parameter.numel() * 4 for parameter in models.tiny(name, task=task).parameters())
    student, _, saving = make(name, task, layers=2, ffn=0.5)
    assert sum(parameter.numel() * 4 for parameter in student.parameters()) == before - (saving or 0)
    widths = {ffn.width for ffn in anatomy.of(student).ffns}
    assert widths == {anatomy.of(models.tiny(name, task=task)).ffns[0].width // 2}
    assert bool(torch.isfinite(models.output(student, models.inputs(name))).all())


def test_the_neurons_that_matter_stay() -> None:
    teacher = models.tiny("bert")
    seen: list[Tensor] = []
    layer = teacher.encoder.layer[0]
    with layer.output.dense.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, 1))):
        for seed in range(2):
            teacher(**models.inputs("bert", batch=4, length=12, seed=seed))
    norms = torch.cat(seen).double().square().mean(0).sqrt()
    index = top_indices(wanda(layer.output.dense.weight, norms), len(norms) // 2)
    student, _, _ = make("bert", ffn=0.5)
    assert torch.equal(student.encoder.layer[0].intermediate.dense.weight, layer.intermediate.dense.weight[index])
    by_weight = layer.output.dense.weight.norm(dim=0) * layer.intermediate.dense.weight.norm(dim=1)
    student, _, _ = make("bert", ffn=0.5, criterion="magnitude")
    index = top_indices(by_weight, len(norms) // 2)
    assert torch.equal(student.encoder.layer[0].output.dense.weight, layer.output.dense.weight[:, index])
    assert LayerInit(ffn=0.5, criterion="magnitude").requirements() == LayerInit(layers=1).requirements() == frozenset()
    assert LayerInit(ffn=0.5).requirements() == {"calibration"}


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("bert", {"layers": 3}, "keeps every block"),
        ("bert", {"layers": (0, 5)}, "block 5 of the encoder doesn't exist"),
        ("t5encoder", {"layers": 1, "choose": "last"}, "can't go"),
        ("albert", {}, "keeps every block"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(models.tiny(name), LayerInit(**options))
    assert why in caught.value.why


@pytest.mark.parametrize(
    "options", [{"layers": 0}, {"layers": ()}, {"layers": (2, 1)}, {"layers": (1,), "choose": "last"}]
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LayerInit(**options)
