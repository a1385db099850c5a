"""Objectives on given, taught and own texts: their limits, their tokens, and that interrupted training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from compresskit.calibrate.batches import collate, encode
from compresskit.core.context import Batch, Context
from compresskit.errors import DataError
from compresskit.train.generation import Decoding, prompt_of, write
from compresskit.train.loop import RecoveryOptions
from compresskit.train.objective import Objective, ResponseObjective, Targets
from compresskit.train.recovery import recover
from compresskit.train.teacher_cache import CachedOutputs, teacher_outputs
from compresskit.train.written import OnPolicyObjective, SequenceObjective, TokenObjective
from tests import models

TEXTS = ["the cat sat on the mat", "a big dog runs", "good film we like", "the book of the dog is not bad"] * 4
GREEDY = Decoding(prompt=3, new_tokens=5, temperature=0.0)
SHORT = Decoding(prompt=2, new_tokens=4, temperature=1.0)
OPTIONS = RecoveryOptions(steps=5, lr=2e-3, batch=8, max_length=16, freeze_embeddings=False)


def batch_for(name: str) -> dict[str, Tensor]:
    return collate(encode(TEXTS[:4], models.tokenizer(), models.tiny(name, task="lm")))


def train(objective: Objective, folder: Path, options: RecoveryOptions = OPTIONS, name: str = "gpt2") -> Any:
    student, teacher = models.tiny(name, 1, task="lm"), models.tiny(name, task="lm")
    context = Context(seed=3, tokenizer=models.tokenizer(), teacher=lambda: teacher, work=folder)
    return student, recover(student, context, objective, TEXTS, options)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_the_loss_on_tokens_is_the_cross_entropy_of_the_texts(name: str) -> None:
    model, batch = models.tiny(name, task="lm"), batch_for(name)
    found = TokenObjective().loss(model, batch, {})
    kind = "decoder_" if name == "t5" else ""
    ids, mask = batch[f"{kind}input_ids"], batch[f"{kind}attention_mask"].bool()
    with torch.no_grad():
        logits = model(**batch).logits
    expected = F.cross_entropy(logits[:, :-1][mask[:, 1:]], ids[:, 1:][mask[:, 1:]])
    torch.testing.assert_close(found.detach(), expected)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_loss_of_sequences_is_the_cross_entropy_of_the_teachers_text(name: str, tmp_path: Path) -> None:
    student, teacher = models.tiny(name, 1, task="lm"), models.tiny(name, task="lm")
    rows = encode(TEXTS[:4], models.tokenizer(), teacher)
    objective = SequenceObjective(GREEDY)
    objective.prepare(teacher, student, collate(rows[:1]))
    cached = teacher_outputs(teacher, objective, rows, tmp_path)
    assert isinstance(cached, CachedOutputs)
    assert {key: (array.shape, str(array.dtype)) for key, array in cached.arrays.items()} == {
        "answer": ((4, 5), "int32")
    }
    batch = collate(rows)
    with torch.no_grad():
        found = objective.loss(student, batch, cached.of([0, 1, 2, 3], batch))
        total, count = 0.0, 0
        for row, answer in zip(rows, write(teacher, batch, GREEDY), strict=True):
            if name == "t5":
                inputs = {key: torch.tensor([row[key]]) for key in ("input_ids", "attention_mask")}
                logits = student(**inputs, decoder_input_ids=torch.tensor([[models.PAD, *answer]])).logits[0]
                start = 1
            else:
                prompt = prompt_of(row["input_ids"], 3)
                logits, start = student(torch.tensor([prompt + answer])).logits[0], len(prompt)
            total += float(F.cross_entropy(logits[start - 1 : -1], torch.tensor(answer), reduction="sum"))
            count += len(answer)
    assert float(found) == pytest.approx(total / count, rel=1e-5)


def test_a_student_learns_to_write_what_its_teacher_writes(tmp_path: Path) -> None:
    options = RecoveryOptions(steps=40, lr=1e-2, batch=16, max_length=16, freeze_embeddings=False)
    student, done = train(SequenceObjective(GREEDY), tmp_path, options)
    teacher = models.tiny("gpt2", task="lm")
    batch = batch_for("gpt2")
    assert done.last_loss < 0.1 * done.first_loss
    assert write(student, batch, GREEDY) == write(teacher, batch, GREEDY)


def test_texts_are_sampled_anew_for_equal_beginnings_and_equal_seeds(tmp_path: Path) -> None:
    teacher = models.tiny("gpt2", task="lm")
    rows = encode([TEXTS[0]] * 40, models.tokenizer(), teacher)  # more than a batch of the cache
    tokens = []
    for number, seed in enumerate((1, 1, 2)):
        objective = SequenceObjective(SHORT, seed)
        objective.prepare(teacher, teacher, collate(rows[:1]))
        before = torch.random.get_rng_state()
        cached = teacher_outputs(teacher, objective, rows, tmp_path / str(number))
        assert torch.equal(torch.random.get_rng_state(), before)
        tokens.append(cached.of(range(40), collate(rows))["answer"])
    assert torch.equal(tokens[0], tokens[1])
    assert not torch.equal(tokens[0], tokens[2])
    assert len({tuple(row) for row in tokens[0].tolist()}) > 30


def test_without_a_share_of_its_own_it_is_distillation_of_responses_bit_by_bit(tmp_path: Path) -> None:
    plain, first = train(ResponseObjective(1.5), tmp_path / "plain")
    none, second = train(OnPolicyObjective(1.5, share=0), tmp_path / "none")
    assert first == second
    assert all(torch.equal(left, right) for left, right in zip(plain.parameters(), none.parameters(), strict=True))


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_on_its_own_texts_a_model_has_nothing_to_learn_from_itself(name: str) -> None:
    student, teacher = models.tiny(name, task="lm"), models.tiny(name, task="lm")
    objective = OnPolicyObjective(1.0, share=1.0, decoding=SHORT)
    batch = batch_for(name)
    objective.prepare(teacher, student, batch)
    assert objective.targets(teacher, batch) == {}
    loss = objective.loss(student, batch, {})
    loss.backward()
    assert abs(float(loss.detach())) < 1e-6
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-4


def test_only_what_was_written_counts() -> None:
    student, teacher = models.tiny("gpt2", 1, task="lm"), models.tiny("gpt2", task="lm")
    objective = OnPolicyObjective(1.0, share=1.0, decoding=GREEDY)
    batch = batch_for("gpt2")
    objective.prepare(teacher, student, batch)
    with torch.no_grad():
        found = objective.loss(student, batch, {})
        total, count = 0.0, 0
        texts = zip(batch["input_ids"], batch["attention_mask"].bool(), write(student, batch, GREEDY), strict=True)
        for ids, mask, answer in texts:
            text = torch.tensor([prompt_of(ids[mask].tolist(), 3) + answer])
            log_q, log_p = (
                model(text).logits[0, -len(answer) - 1 : -1].log_softmax(-1) for model in (student, teacher)
            )
            total += float((log_p.exp() * (log_p - log_q)).sum())
            count += len(answer)
    assert float(found) == pytest.approx(total / count, rel=1e-4)


def test_a_share_of_the_batches_is_the_students(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[int] = []

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(1)
        return write(*given, **named)

    monkeypatch.setattr("compresskit.train.written.write", counted)
    for share, least, most in ((0.0, 0, 0), (0.5, 3, 17), (1.0, 20, 20)):
        calls.clear()
        options = RecoveryOptions(steps=20, lr=1e-4, batch=2, max_length=8)
        train(OnPolicyObjective(1.0, share=share, decoding=Decoding(2, 1)), tmp_path / str(share), options)
        assert least <= len(calls) <= most


class Killed(Exception):
    """Stands for a process that ends in the middle."""


class Mortal(OnPolicyObjective):
    last: int = 10**9
    step: int = 0

    def loss(self, student: PreTrainedModel, batch: Batch, targets: Targets) -> Tensor:
        self.step += 1
        if self.step > self.last:
            raise Killed
        return super().loss(student, batch, targets)


def test_interrupted_on_policy_training_goes_on_and_ends_bit_equal(tmp_path: Path) -> None:
    options = RecoveryOptions(steps=7, lr=2e-3, batch=8, max_length=16, save_every=2)
    whole, _ = train(Mortal(1.0, share=0.7, decoding=SHORT), tmp_path / "whole", options)
    stopped = Mortal(1.0, share=0.7, decoding=SHORT)
    stopped.last = 5
    with pytest.raises(Killed):
        train(stopped, tmp_path / "stopped", options)
    again = Mortal(1.0, share=0.7, decoding=SHORT)
    resumed, _ = train(again, tmp_path / "stopped", options)
    assert again.step == 3, "steps 5, 6 and 7 are taken anew"
    assert all(torch.equal(left, right) for left, right in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_teacher_with_other_words_cannot_write_for_the_student() -> None:
    config = models.config("gpt2")
    config.vocab_size = models.VOCABULARY + 8
    student = models.tiny("gpt2", task="lm")
    with pytest.raises(DataError) as caught:
        SequenceObjective().prepare(type(student)(config).eval(), student, batch_for("gpt2"))
    assert caught.value.code == "CK-D073"
