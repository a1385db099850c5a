"""Objectives that look inside two models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compresskit.core import anatomy, surgery
from compresskit.core.context import Context
from compresskit.errors import DataError
from compresskit.train.inner import InnerObjective, LayerMap, layer_pairs, look
from compresskit.train.loop import RecoveryOptions
from compresskit.train.objective import ResponseObjective
from compresskit.train.policies import Curriculum
from compresskit.train.recovery import recover
from tests import models

V1, V2 = (("query", "key"), ("value", "value")), (("query", "query"), ("key", "key"), ("value", "value"))
SINGLE = [name for name in models.FAMILIES if name != "t5"]
TEXTS = ["the cat sat on the mat", "a big dog runs fast", "good film we like", "the book is not bad"] * 4


def loss_of(objective: InnerObjective, student: Any, teacher: Any, batch: Any) -> torch.Tensor:
    objective.prepare(teacher, student, batch)
    return objective.loss(student, batch, objective.targets(teacher, batch))


@pytest.mark.parametrize(
    ("layers", "sizes", "pairs"),
    [
        ("skip", (3, 6), [(0, 1), (1, 3), (2, 5)]),
        ("skip", (2, 3), [(0, 0), (1, 2)]),
        ("skip", (3, 2), [(0, 0), (1, 0), (2, 1)]),
        ("last", (2, 6), [(0, 4), (1, 5)]),
        ((0, None, 5), (3, 6), [(0, 0), (2, 5)]),
    ],
)
def test_layer_maps(layers: LayerMap, sizes: tuple[int, int], pairs: list[tuple[int, int]]) -> None:
    assert layer_pairs(layers, *sizes) == pairs


@pytest.mark.parametrize("layers", [(0,), (0, 3), (0, -1)])
def test_layer_maps_that_do_not_fit(layers: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as caught:
        layer_pairs(layers, 2, 3)
    assert caught.value.code == "CK-D071"


@pytest.mark.parametrize("name", SINGLE)
def test_what_is_seen_is_what_the_model_says(name: str) -> None:
    model, batch = models.tiny(name), models.inputs(name, padded=True)
    with torch.no_grad():
        seen, said = look(model, batch), model(**batch, output_hidden_states=True).hidden_states
    assert len(seen.hidden) == len(seen.query) == len(seen.value) == models.LAYERS
    assert torch.equal(seen.embedding[0], said[0])
    # The last state that transformers gives is, in some models, behind the final norm.
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen.hidden[:-1], said[1:-1], strict=True))


@pytest.mark.parametrize("name", SINGLE)
def test_equal_models_have_no_loss_and_no_gradient(name: str) -> None:
    teacher, student, batch = models.tiny(name), models.tiny(name), models.inputs(name, padded=True)
    for options in (
        {"hidden": 1.0, "embedding": 1.0},
        {"scores": 1.0},
        {"maps": 1.0},
        {"relations": V1, "last_only": -1},
    ):
        student.zero_grad()
        loss = loss_of(InnerObjective(**options), student, teacher, batch)
        loss.backward()
        assert abs(float(loss.detach())) < 1e-6
        worst = max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None)
        other = loss_of(InnerObjective(**options), student, models.tiny(name, seed=1), batch)
        assert worst < 1e-5
        assert float(other.detach()) > 1e-4


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("relations", [V1, V2])
def test_relations_do_not_see_padding(name: str, relations: Any) -> None:
    teacher, student, batch = models.tiny(name), models.tiny(name, seed=1), models.inputs(name, padded=True)
    objective = InnerObjective(relations=relations, last_only=-1)
    before = loss_of(objective, student, teacher, batch)
    ids = torch.where(batch["attention_mask"].bool(), batch["input_ids"], torch.full_like(batch["input_ids"], 77))
    after = loss_of(objective, student, teacher, {**batch, "input_ids": ids})
    assert float(after.detach()) == pytest.approx(float(before.detach()), rel=1e-5)


def test_relations_do_not_depend_on_the_heads_of_the_teacher() -> None:
    """The same projections, cut into 2 or 4 heads, in the first layer, whose input is the same."""
    found = []
    for heads in (2, 4):
        teacher = models.tiny("bert", num_attention_heads=heads)
        objective = InnerObjective(relations=V2, last_only=0)
        found.append(float(loss_of(objective, models.tiny("bert", seed=1), teacher, models.inputs("bert")).detach()))
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("objective", [InnerObjective(hidden=1.0, embedding=1.0), InnerObjective(relations=V2)])
def test_teachers_of_other_widths_and_depths(objective: InnerObjective, tmp_path: Path) -> None:
    teacher = models.tiny("bert", hidden_size=96, num_hidden_layers=5, num_attention_heads=6)
    student = models.tiny("bert", seed=1)
    context = Context(tokenizer=models.tokenizer(), teacher=lambda: teacher, work=tmp_path)
    done = recover(student, context, objective, TEXTS, RecoveryOptions(steps=20, lr=2e-3, batch=8, max_length=12))
    assert done.last_loss < done.first_loss
    assert {name: tuple(layer.weight.shape) for name, layer in objective.learned.items()} == (
        dict.fromkeys(("hidden-0", "hidden-1", "hidden-2", "embedding-0"), (96, 64)) if objective.hidden else {}
    )


def test_pruned_students() -> None:
    teacher, student, batch = models.tiny("bert"), models.tiny("bert"), models.inputs("bert", padded=True)
    surgery.keep_blocks(student, anatomy.of(student).stacks[0], [0, 2])
    assert float(loss_of(InnerObjective(hidden=1.0, layers=(0, 2)), student, teacher, batch).detach()) > 0
    narrow = models.tiny("bert", num_attention_heads=2)
    with pytest.raises(DataError) as caught:
        loss_of(InnerObjective(scores=1.0), narrow, teacher, batch)
    assert caught.value.code == "CK-D072"
    with pytest.raises(DataError) as caught:
        loss_of(InnerObjective(relations=V2, heads=7), narrow, teacher, batch)
    assert caught.value.code == "CK-D072"


@pytest.mark.parametrize("kind", ["projections", "temperature"])
def test_what_an_objective_learns_is_kept_when_training_is_stopped(kind: str, tmp_path: Path) -> None:
    """Stopped and resumed gives the same bits, projections and temperature included."""
    task = "base" if kind == "projections" else "classifier"
    teacher = models.tiny("bert", task=task, hidden_size=96, num_attention_heads=6)
    options = RecoveryOptions(steps=6, lr=2e-3, batch=8, max_length=12, save_every=2)

    class Stopped(Exception):
        pass

    def stop(share: float, _: str) -> None:
        if share > 0.2 + 0.8 * 4.5 / 6:
            raise Stopped

    def begun() -> tuple[Any, Any]:
        objective = InnerObjective(hidden=1.0) if kind == "projections" else ResponseObjective(policy=Curriculum())
        return models.tiny("bert", 1, task=task), objective

    results = []
    for folder, stops in ((tmp_path / "whole", False), (tmp_path / "parts", True)):
        student, objective = begun()
        context = Context(tokenizer=models.tokenizer(), teacher=lambda: teacher, work=folder)
        if stops:
            with pytest.raises(Stopped):
                recover(student, replace(context, progress=stop), objective, TEXTS, options)
            student, objective = begun()
        recover(student, context, objective, TEXTS, options)
        results.append([*student.state_dict().values(), *objective.learned.state_dict().values()])
    if kind == "temperature":
        assert float(results[0][-1]) != 0
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
