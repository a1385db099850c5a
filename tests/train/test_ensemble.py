"""Several teachers: means worked by hand, one teacher, and classes that are decisions each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from compresskit.calibrate.batches import collate, encode
from compresskit.errors import DataError
from compresskit.train.ensemble import EnsembleObjective
from compresskit.train.losses import response_loss
from compresskit.train.objective import ResponseObjective
from compresskit.train.teacher_cache import CachedOutputs, teacher_outputs
from tests import models

TEXTS = ["the cat sat on the mat", "a big dog runs", "good film", "we like it not but the book of the dog is bad"]


def ensemble(seeds: tuple[int, ...], task: models.Task = "lm", name: str = "gpt2", **options: Any) -> Any:
    """An objective with the first teacher left out, and that teacher."""
    teachers = [models.tiny(name, seed, task=task) for seed in seeds]
    weights = options.pop("weights", (1 / len(seeds),) * len(seeds))
    return EnsembleObjective(2.0, others=teachers[1:], weights=weights, **options), teachers[0]


def test_means_by_hand() -> None:
    logits = [torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.0, 0.0]])]
    objective = EnsembleObjective(1.0, weights=(0.5, 0.5))
    found = objective.combined(logits).softmax(-1)
    torch.testing.assert_close(found, torch.tensor([[0.375, 0.625]]))
    objective = EnsembleObjective(1.0, weights=(0.25, 0.75), mean="logits")
    torch.testing.assert_close(objective.combined(logits), torch.tensor([[0.0, 0.25 * math.log(3.0)]]))
    # At T = 2 it is the mean of what is softened: sigmoid(ln 9 / 2) = 3/4, and 1/2.
    objective = EnsembleObjective(2.0, weights=(0.5, 0.5))
    found = (objective.combined([2 * logits[0], logits[1]]) / 2).softmax(-1)
    torch.testing.assert_close(found, torch.tensor([[0.375, 0.625]]))


@pytest.mark.parametrize(("name", "task"), [("gpt2", "lm"), ("bert", "classifier"), ("t5", "lm")])
def test_one_teacher_is_distillation_of_responses(name: str, task: models.Task) -> None:
    student, batch = models.tiny(name, 5, task=task), models.inputs(name, padded=True)
    plain, teacher = ResponseObjective(2.0), models.tiny(name, 0, task=task)
    plain.prepare(teacher, student, batch)
    expected = plain.loss(student, batch, plain.targets(teacher, batch))
    for mean in ("logits", "probabilities"):
        objective, _ = ensemble((0,), task, name, mean=mean)
        objective.prepare(teacher, student, batch)
        found = objective.loss(student, batch, objective.targets(teacher, batch))
        if mean == "logits":
            assert torch.equal(found, expected)
        torch.testing.assert_close(found, expected)


def test_all_weight_on_one_teacher_is_that_teacher() -> None:
    student, batch = models.tiny("gpt2", 5, task="lm"), models.inputs("gpt2")
    plain, first = ResponseObjective(2.0), models.tiny("gpt2", 0, task="lm")
    plain.prepare(first, student, batch)
    expected = plain.loss(student, batch, plain.targets(first, batch))
    objective, teacher = ensemble((0, 1), weights=(1 - 1e-9, 1e-9))
    objective.prepare(teacher, student, batch)
    torch.testing.assert_close(objective.loss(student, batch, objective.targets(teacher, batch)), expected)


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_equal_teachers_have_nothing_to_teach_each_other(mean: str) -> None:
    student, batch = models.tiny("gpt2", task="lm"), models.inputs("gpt2", padded=True)
    objective, teacher = ensemble((0, 0, 0), mean=mean)
    objective.prepare(teacher, student, batch)
    loss = objective.loss(student, batch, objective.targets(teacher, batch))
    loss.backward()
    assert abs(float(loss.detach())) < 1e-5
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-4


def test_classes_that_are_decisions_each_are_averaged_each() -> None:
    student = models.tiny("bert", 5, task="classifier")
    batch = models.inputs("bert")
    objective, teacher = ensemble((0, 1), "classifier", "bert", binary=True)
    objective.prepare(teacher, student, batch)
    with torch.no_grad():
        found = objective.loss(student, batch, objective.targets(teacher, batch))
        ours, *theirs = (model(**batch).logits / 2 for model in (student, teacher, *objective.others))
        mean = (theirs[0].sigmoid() + theirs[1].sigmoid()) / 2
        q = ours.sigmoid()
        expected = mean * (mean / q).log() + (1 - mean) * ((1 - mean) / (1 - q)).log()
    torch.testing.assert_close(found, 4 * expected.sum(-1).mean(), rtol=1e-4, atol=1e-6)


def test_states_of_all_teachers_go_through_the_cache(tmp_path: Path) -> None:
    student = models.tiny("gpt2", 5, task="lm")
    objective, teacher = ensemble((0, 1))
    rows = encode(TEXTS, models.tokenizer(), teacher)
    objective.prepare(teacher, student, collate(rows[:1]))
    cached = teacher_outputs(teacher, objective, rows, tmp_path)
    assert isinstance(cached, CachedOutputs)
    assert sorted(cached.arrays) == ["state-0", "state-1"]
    batch = collate(rows)
    found = objective.loss(student, batch, cached.of(range(4), batch))
    torch.testing.assert_close(
        found, objective.loss(student, batch, objective.targets(teacher, batch)), rtol=2e-3, atol=0
    )


def test_the_cache_knows_the_other_teachers() -> None:
    keys = set()
    for digests in (("a",), ("b",)):
        objective, teacher = ensemble((0, 1), digests=digests)
        objective.prepare(teacher, teacher, models.inputs("gpt2"))
        keys.add(objective.key())
    assert len(keys) == 2


def test_a_second_teacher_with_other_words_is_refused() -> None:
    config = models.config("gpt2")
    config.vocab_size = models.VOCABULARY + 8
    first = models.tiny("gpt2", task="lm")
    objective = EnsembleObjective(others=[type(first)(config).eval()], weights=(0.5, 0.5))
    with pytest.raises(DataError) as caught:
        objective.prepare(first, first, models.inputs("gpt2"))
    assert caught.value.code == "CK-D073"


def test_the_mean_of_two_is_nearer_to_both_than_they_are() -> None:
    objective, teacher = ensemble((0, 1))
    batch = models.inputs("gpt2")
    with torch.no_grad():
        first, second = (model(**batch).logits.flatten(0, 1) for model in (teacher, objective.others[0]))
    mean = objective.combined([first, second])
    apart = float(response_loss(second, first, 2.0))
    assert float(response_loss(mean, first, 2.0)) < 0.5 * apart
