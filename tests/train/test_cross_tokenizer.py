"""A teacher with another tokenizer: what is compared, what isn't, and what order doesn't matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from compresskit.calibrate.batches import collate, encode
from compresskit.calibrate.outputs import outputs_of
from compresskit.errors import DataError
from compresskit.numerics.divergences import sorted_distance
from compresskit.train.alignment import NOWHERE, aligned, read
from compresskit.train.cross_tokenizer import CrossTokenizerObjective
from compresskit.train.teacher_cache import CachedOutputs, teacher_outputs
from compresskit.train.written import TokenObjective
from tests import models
from tests.train.test_alignment import byte_tokenizer

TEXTS = ["the cat sat on the mat", "a big dog runs", "good film we like", "the book of the dog is not bad"]


def other_teacher() -> Any:
    """A GPT-2 of 270 words with a narrower state than the student's."""
    config = hf.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=270, initializer_range=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return hf.GPT2LMHeadModel(config).eval()


def objective_for(student: Any, teacher: Any, theirs: Any, **options: Any) -> CrossTokenizerObjective:
    found = CrossTokenizerObjective(1.0, texts=TEXTS, tokenizers=(models.tokenizer(), theirs), **options)
    found.prepare(teacher, student, batch_for(student))
    return found


def batch_for(student: Any) -> dict[str, Tensor]:
    return collate(encode(TEXTS, models.tokenizer(), student))


def test_the_loss_is_the_distance_where_both_have_read_the_same() -> None:
    student, teacher, theirs = models.tiny("llama", task="lm"), other_teacher(), byte_tokenizer()
    objective = objective_for(student, teacher, theirs, hard=0.0, weight=2.0)
    batch = batch_for(student)
    with torch.no_grad():
        found = objective.loss(student, batch, objective.targets(teacher, batch))
    distances = []
    for ours, their in zip(read(TEXTS, models.tokenizer(), 64), read(TEXTS, theirs, 64), strict=True):
        q, p = (
            outputs_of(model, {"input_ids": torch.tensor([side.ids])})[0].softmax(-1)
            for model, side in ((student, ours), (teacher, their))
        )
        for place, other in enumerate(aligned(ours.ends, their.ends)):
            if other != NOWHERE:
                distances.append(float(sorted_distance(p[other : other + 1], q[place : place + 1])))
    assert len(distances) >= 4 * len(TEXTS)
    assert float(found) == pytest.approx(2 * sum(distances) / len(distances), rel=1e-5)


def test_the_text_itself_counts_as_much_as_it_is_told_to() -> None:
    student, teacher, theirs = models.tiny("llama", task="lm"), other_teacher(), byte_tokenizer()
    batch = batch_for(student)
    losses = []
    for hard in (0.0, 0.5):
        objective = objective_for(student, teacher, theirs, hard=hard)
        losses.append(float(objective.loss(student, batch, objective.targets(teacher, batch)).detach()))
    plain = float(TokenObjective().loss(student, batch, {}).detach())
    assert losses[1] - losses[0] == pytest.approx(0.5 * plain, rel=1e-4)


def test_the_teacher_itself_has_no_loss_and_no_gradient() -> None:
    student = models.tiny("gpt2", task="lm")
    objective = objective_for(student, models.tiny("gpt2", task="lm"), models.tokenizer(), hard=0.0)
    assert objective.share() > 0.5
    batch = batch_for(student)
    loss = objective.loss(student, batch, objective.targets(models.tiny("gpt2", task="lm"), batch))
    loss.backward()
    assert abs(float(loss.detach())) < 1e-6
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-3


def test_a_vocabulary_in_another_order_teaches_the_same() -> None:
    student, teacher, theirs = models.tiny("llama", task="lm"), other_teacher(), byte_tokenizer()
    batch = batch_for(student)
    losses = []
    for permuted in (False, True):
        if permuted:
            order = torch.randperm(270, generator=torch.Generator().manual_seed(0))
            head = torch.nn.Linear(32, 270, bias=False)
            with torch.no_grad():
                head.weight.copy_(teacher.lm_head.weight[order])
            teacher.lm_head = head
        objective = objective_for(student, teacher, theirs)
        losses.append(float(objective.loss(student, batch, objective.targets(teacher, batch)).detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_states_of_the_teacher_go_through_the_cache(tmp_path: Path) -> None:
    student, teacher = models.tiny("llama", task="lm"), other_teacher()
    objective = objective_for(student, teacher, byte_tokenizer())
    rows = encode(TEXTS, models.tokenizer(), student)
    cached = teacher_outputs(teacher, objective, rows, tmp_path)
    assert isinstance(cached, CachedOutputs)
    tokens = sum(len(row["input_ids"]) for row in rows)
    shapes = {name: array.shape for name, array in cached.arrays.items()}
    assert shapes == {"state": (tokens, 32), "aligned": (tokens, 1)}
    numbers = [2, 0]
    batch = collate([rows[number] for number in numbers])
    found = objective.loss(student, batch, cached.of(numbers, batch))
    live = objective.loss(student, batch, objective.targets(teacher, batch))
    torch.testing.assert_close(found, live, rtol=2e-3, atol=0)


def test_the_cache_knows_how_the_teacher_reads() -> None:
    student, teacher = models.tiny("llama", task="lm"), other_teacher()
    keys = [objective_for(student, teacher, byte_tokenizer(begin=begin)).key() for begin in (True, False)]
    assert keys[0] != keys[1]


def test_tokenizers_that_never_meet_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compresskit.train.cross_tokenizer.aligned", lambda ours, theirs: [NOWHERE] * len(ours))
    student = models.tiny("llama", task="lm")
    with pytest.raises(DataError) as caught:
        objective_for(student, other_teacher(), byte_tokenizer())
    assert caught.value.code == "CK-D075"
