"""Texts that are held out: never trained on, the best weights on them are kept, and training stops where it must."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from compresskit.calibrate.batches import collate, encode
from compresskit.core.context import Context
from compresskit.errors import DataError
from compresskit.methods.distillation.logits import Logits
from compresskit.train.loop import RecoveryOptions
from compresskit.train.objective import ResponseObjective
from compresskit.train.policies import Annealed
from compresskit.train.recovery import _split, recover
from tests import models

WORDS = ["the", "cat", "dog", "book", "film", "sat", "runs", "big", "good", "bad", "not", "we", "like", "on", "a", "of"]
TEXTS = [" ".join((WORDS * 2)[start : start + 3 + start % 5]) for start in range(16)] * 2
OPTIONS = RecoveryOptions(steps=24, lr=2e-3, batch=4, max_length=12, save_every=5, dev=0.25, evaluate_every=4)


def trained(options: RecoveryOptions, folder: Path, **more: Any) -> tuple[Any, Any]:
    student, teacher = models.tiny("bert", 1, task="classifier"), models.tiny("bert", task="classifier")
    context = Context(tokenizer=models.tokenizer(), teacher=lambda: teacher, work=folder, **more)
    return student, recover(student, context, ResponseObjective(2.0), TEXTS, options)


def dev_loss(student: Any) -> float:
    """The loss on the held-out texts, by another way than training takes."""
    teacher = models.tiny("bert", task="classifier")
    rows = _split(encode(TEXTS, models.tokenizer(), student, 12), 0.25, 0)[1]
    batch, objective = collate(rows, 0), ResponseObjective(2.0)
    with torch.no_grad():
        objective.prepare(teacher, student, batch)
        return float(objective.loss(student.eval(), batch, objective.targets(teacher, batch)))


def test_the_best_weights_on_held_out_texts_are_kept(tmp_path: Path) -> None:
    student, outcome = trained(OPTIONS, tmp_path)
    assert outcome.texts == 24
    assert list(outcome.dev_losses) == [4, 8, 12, 16, 20, 24]
    assert outcome.dev_losses[outcome.kept_step] == min(outcome.dev_losses.values())
    assert dev_loss(student) == pytest.approx(min(outcome.dev_losses.values()), rel=1e-3)
    assert min(outcome.dev_losses.values()) < dev_loss(models.tiny("bert", 1, task="classifier"))


def test_training_that_only_does_harm_is_stopped(tmp_path: Path) -> None:
    """A rate at which weights run away: at the first worse look it is over, and those before it are taken."""
    wild = replace(OPTIONS, lr=0.5, patience=1, warmup=0.0)
    student, outcome = trained(wild, tmp_path)
    assert outcome.steps < 24
    assert outcome.steps == outcome.kept_step + 4
    assert dev_loss(student) == pytest.approx(outcome.dev_losses[outcome.kept_step], rel=1e-3)


def test_stopped_and_resumed_ends_bit_equal(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(share: float, _: str) -> None:
        if share > 0.2 + 0.8 * 13.5 / 24:
            raise Stopped

    whole, expected = trained(OPTIONS, tmp_path / "whole")
    with pytest.raises(Stopped):
        trained(OPTIONS, tmp_path / "parts", progress=stop)
    resumed, found = trained(OPTIONS, tmp_path / "parts")
    assert found.dev_losses == expected.dev_losses
    assert found.kept_step == expected.kept_step
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_rewind_keeps_count_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is no number in step 14: looks before and after have the steps of the whole training."""
    seen: list[int] = []

    def loss(self: ResponseObjective, *args: Any) -> torch.Tensor:
        value = whole(self, *args)
        seen.append(1)
        return value * torch.nan if len(seen) == fault else value

    whole, fault = ResponseObjective.loss, 14 + 6  # two batches of held-out texts at each of three looks
    monkeypatch.setattr(ResponseObjective, "loss", loss)
    _, outcome = trained(OPTIONS, tmp_path, warn=lambda _: None)
    assert outcome.rewinds == 1
    assert outcome.steps == 24
    assert list(outcome.dev_losses) == [4, 8, 12, 16, 20, 24]
    assert outcome.dev_losses[outcome.kept_step] == min(outcome.dev_losses.values())


def test_where_losses_change_with_time_the_last_meaning_counts(tmp_path: Path) -> None:
    """Softened targets have smaller losses: held-out texts are judged at T = 1 from the first look on."""
    student, teacher = models.tiny("bert", 1, task="classifier"), models.tiny("bert", task="classifier")
    context = Context(tokenizer=models.tokenizer(), teacher=lambda: teacher, work=tmp_path)
    outcome = recover(student, context, ResponseObjective(policy=Annealed()), TEXTS, replace(OPTIONS, lr=1e-9))
    assert outcome.dev_losses is not None
    assert max(outcome.dev_losses.values()) == pytest.approx(min(outcome.dev_losses.values()), rel=1e-3)


def test_held_out_texts_are_no_others_than_those_left() -> None:
    rows = encode(TEXTS, models.tokenizer(), models.tiny("bert"), 12)
    left, held_out = _split(rows, 0.1, 3)
    assert (len(left), len(held_out)) == (29, 3)
    assert sorted(map(id, left + held_out)) == sorted(map(id, rows))
    assert _split(rows, 0, 3) == (rows, [])
    with pytest.raises(DataError, match="held out"):
        _split(rows[:1], 0.5, 0)


def test_patience_without_texts_is_refused() -> None:
    with pytest.raises(ValidationError, match="held out"):
        Logits(patience=2)
    with pytest.raises(ValidationError, match="learned temperature"):
        Logits(dev=0.1, policy="curriculum")
