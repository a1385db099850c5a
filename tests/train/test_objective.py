"""Objectives on output distributions: what is kept of the teacher, other divergences, models that don't go together."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compresskit.calibrate.batches import collate, encode
from compresskit.errors import DataError
from compresskit.numerics.divergences import generalized_jsd, kl, skew_kl
from compresskit.train.losses import binary_response_loss
from compresskit.train.objective import Divergence, ResponseObjective
from compresskit.train.policies import Annealed, Curriculum
from compresskit.train.teacher_cache import CachedOutputs, teacher_outputs
from tests import models

TEXTS = ["the cat sat on the mat", "a big dog runs", "good film", "we like it not but the book of the dog is bad"] * 3


def reverse(log_p: Tensor, log_q: Tensor) -> Tensor:
    return kl(log_q, log_p)


DIVERGENCES: dict[str, Divergence | None] = {
    "forward": None,
    "reverse": reverse,
    "skew": partial(skew_kl, alpha=0.1),
    "jsd": partial(generalized_jsd, beta=0.5),
}


def loss_of(objective: ResponseObjective, student: Any, teacher: Any, batch: Any) -> Tensor:
    objective.prepare(teacher, student, batch)
    return objective.loss(student, batch, objective.targets(teacher, batch))


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_the_teacher_itself_has_no_loss_and_no_gradient(name: str, top_k: int | None) -> None:
    student, batch = models.tiny("llama", task="lm"), models.inputs("llama", padded=True)
    objective = ResponseObjective(2.0, divergence=DIVERGENCES[name], top_k=top_k)
    loss = loss_of(objective, student, models.tiny("llama", task="lm"), batch)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-6
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-4


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_with_all_words_but_one_the_kept_distribution_is_whole(name: str) -> None:
    student, teacher = models.tiny("gpt2", 1, task="lm"), models.tiny("gpt2", task="lm")
    batch = models.inputs("gpt2", padded=True)
    whole, kept = (
        loss_of(ResponseObjective(1.5, divergence=DIVERGENCES[name], top_k=top_k), student, teacher, batch)
        for top_k in (None, 10**6)
    )
    torch.testing.assert_close(kept, whole, rtol=1e-4, atol=1e-5)


def test_fewer_words_see_less_of_the_divergence() -> None:
    student, teacher = models.tiny("gpt2", 1, task="lm"), models.tiny("gpt2", task="lm")
    batch = models.inputs("gpt2")
    losses = [
        float(loss_of(ResponseObjective(1.0, top_k=top_k), student, teacher, batch).detach())
        for top_k in (1, 8, 64, None)
    ]
    assert losses == sorted(losses)
    assert 0 < losses[0] < 0.9 * losses[-1]


def test_kept_words_go_through_the_cache(tmp_path: Path) -> None:
    student, teacher = models.tiny("gpt2", 1, task="lm"), models.tiny("gpt2", task="lm")
    rows = encode(TEXTS, models.tokenizer(), teacher)
    objective = ResponseObjective(1.0, top_k=6)
    objective.prepare(teacher, student, collate(rows[:1]))
    cached = teacher_outputs(teacher, objective, rows, tmp_path)
    assert isinstance(cached, CachedOutputs)
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert {name: (array.shape, str(array.dtype)) for name, array in cached.arrays.items()} == {
        "top": ((tokens, 7), "float16"),
        "words": ((tokens, 6), "int32"),
    }
    numbers = [5, 0, 7]
    batch = collate([rows[number] for number in numbers])
    found = objective.loss(student, batch, cached.of(numbers, batch))
    torch.testing.assert_close(
        found, objective.loss(student, batch, objective.targets(teacher, batch)), rtol=1e-3, atol=0
    )


def test_a_divergence_with_classes_that_are_decisions_each() -> None:
    student, teacher = (models.tiny("bert", seed, task="classifier") for seed in (1, 0))
    batch = models.inputs("bert")
    with torch.no_grad():
        ours, theirs = (model(**batch).logits for model in (student, teacher))
        found = loss_of(ResponseObjective(2.0, binary=True, divergence=kl), student, teacher, batch)
    torch.testing.assert_close(found, binary_response_loss(ours, theirs, 2.0))


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"num_labels": 4}, "CK-D066"), ({"id2label": {0: "no", 1: "yes", 2: "perhaps"}}, "CK-D066")],
)
def test_classes_that_are_others(changes: dict[str, Any], code: str) -> None:
    student = models.tiny("bert", task="classifier")
    config = models.config("bert").to_dict() | changes
    if "num_labels" in changes:
        config |= {"id2label": {number: f"LABEL_{number}" for number in range(changes["num_labels"])}}
    teacher = type(student)(type(student.config).from_dict(config)).eval()
    with pytest.raises(DataError) as caught:
        ResponseObjective().prepare(teacher, student, models.inputs("bert"))
    assert caught.value.code == code


def test_a_teacher_with_another_vocabulary_is_told_what_to_use() -> None:
    student = models.tiny("gpt2", task="lm")
    config = models.config("gpt2")
    config.vocab_size = models.VOCABULARY + 8
    teacher = type(student)(config).eval()
    with pytest.raises(DataError, match=r"512 logits.*520") as caught:
        ResponseObjective().prepare(teacher, student, models.inputs("gpt2"))
    assert caught.value.code == "CK-D073"
    assert "distillation.uld" in caught.value.fix


def test_an_annealed_temperature_falls_to_one() -> None:
    """At the end it is the loss at T = 1, times 1; before, that of softer targets."""
    student, teacher = models.tiny("bert", 1, task="classifier"), models.tiny("bert", task="classifier")
    batch = models.inputs("bert", padded=True)
    objective = ResponseObjective(policy=Annealed())
    begun = loss_of(objective, student, teacher, batch)
    objective.come_to(1.0)
    ended = loss_of(objective, student, teacher, batch)
    torch.testing.assert_close(ended, loss_of(ResponseObjective(1.0), student, teacher, batch))
    assert not torch.equal(begun, ended)


def test_a_learned_temperature_makes_the_task_harder() -> None:
    """Nothing at first, where gradients count nothing; later a step up the loss."""
    student, teacher = models.tiny("bert", 1, task="classifier"), models.tiny("bert", task="classifier")
    batch = models.inputs("bert", padded=True)
    objective = ResponseObjective(policy=Curriculum(lr=1.0))
    (value,) = objective.learned.parameters()
    before = loss_of(objective, student, teacher, batch)
    before.backward()
    objective.advance()
    assert float(value.detach()) == 0
    objective.come_to(1.0)
    loss_of(objective, student, teacher, batch).backward()
    objective.advance()
    assert float(value.detach()) != 0
    assert float(loss_of(objective, student, teacher, batch).detach()) > float(before.detach())
