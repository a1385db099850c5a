"""Training on labels and logits: it learns, repeats itself, keeps the best epoch, and refuses what doesn't fit."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compresskit.errors import DataError
from compresskit.models.relation import PCNNForRelationExtraction
from compresskit.models.settings import PCNNConfig
from compresskit.tasks.relation_extraction import Vocabulary, collate_relations, read_instances, relation_numbers
from compresskit.train.labelled import FitOptions, Labelled, fit, logits_of, orders
from compresskit.train.logits_cache import cached_logits
from compresskit.train.policies import Curriculum, Exponential
from tests.children import forked, statuses
from tests.tasks.relation_extraction.examples import RELATIONS, records, write


@pytest.fixture
def data(tmp_path: Path) -> Labelled:
    items = read_instances(write(tmp_path / "a.jsonl", records(48)))
    rows = Vocabulary.of(items).encode(items)
    return Labelled(rows, relation_numbers(items, RELATIONS), collate_relations, lambda row: len(row.ids))


def model(seed: int = 0) -> PCNNForRelationExtraction:
    torch.manual_seed(seed)
    return PCNNForRelationExtraction(PCNNConfig(vocab_size=30, filters=8, num_labels=3, classifier_dropout=0.1))


def test_it_learns_labels(data: Labelled) -> None:
    student = model()
    done = fit(student, data, FitOptions(epochs=8, lr=1e-2, batch=8))
    assert done.losses[-1] < 0.3 * done.losses[0]
    assert (logits_of(student, data.rows, data.collate).argmax(-1) == data.labels).all()
    assert not student.training
    assert all(parameter.grad is None for parameter in student.parameters())


def test_without_development_data_there_is_no_score_and_the_last_epoch_is_kept(data: Labelled) -> None:
    long, short = model(), model()
    done = fit(long, data, FitOptions(epochs=3, batch=8))
    assert (done.scores, done.best) == ((), 2)
    falling = iter([0.5, 0.2, 0.1])
    best = fit(short, data, FitOptions(epochs=3, batch=8), score=lambda _: next(falling))
    assert (best.scores, best.best) == ((0.5, 0.2, 0.1), 0)
    assert not torch.equal(long.classifier.weight, short.classifier.weight)


def test_it_learns_from_logits_alone(data: Labelled) -> None:
    targets = 5 * nn.functional.one_hot(data.labels, 3).float()
    wrong = Labelled(data.rows, torch.zeros_like(data.labels), data.collate, data.length)
    student = model()
    fit(student, wrong, FitOptions(epochs=8, lr=1e-2, batch=8, alpha=1.0), targets=targets, policy=Exponential())
    assert (logits_of(student, data.rows, data.collate).argmax(-1) == data.labels).all()


def test_equal_seeds_give_equal_weights_and_the_global_state_stays(data: Labelled) -> None:
    before = torch.random.get_rng_state()
    first, second, other = model(), model(), model()
    torch.random.set_rng_state(before)
    for student, seed in ((first, 3), (second, 3), (other, 4)):
        fit(student, data, FitOptions(epochs=2, batch=8, seed=seed))
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [student.classifier.weight for student in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_half_precision_trains_in_float32(data: Labelled) -> None:
    half, whole = model().bfloat16(), model().bfloat16().float()
    for student in (half, whole):
        fit(student, data, FitOptions(epochs=1, batch=16, lr=1e-3))
    for left, right in zip(half.parameters(), whole.parameters(), strict=True):
        assert torch.equal(left, right.bfloat16())


def test_the_best_epoch_is_kept(data: Labelled) -> None:
    seen: list[torch.Tensor] = []

    def score(module: Any) -> float:
        seen.append(module.classifier.weight.detach().clone())
        return [0.1, 0.9, 0.5][len(seen) - 1]

    student = model()
    done = fit(student, data, FitOptions(epochs=3, batch=8), score=score)
    assert done.best == 1
    assert torch.equal(student.classifier.weight, seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_orders_hold_every_row_once(data: Labelled) -> None:
    found = list(orders(data, 7, torch.Generator().manual_seed(0)))
    assert sorted(torch.cat(found).tolist()) == list(range(48))
    assert max(len(batch) for batch in found) == 7
    again = list(orders(data, 7, torch.Generator().manual_seed(1)))
    assert torch.cat(found).tolist() != torch.cat(again).tolist()


def test_targets_must_fit(data: Labelled) -> None:
    for shape in ((47, 3), (48, 2), (48,)):
        with pytest.raises(DataError) as caught:
            fit(model(), data, FitOptions(epochs=1), targets=torch.zeros(shape))
        assert caught.value.code == "CK-D065"


def test_a_loss_that_is_no_number(data: Labelled) -> None:
    student = model()
    with torch.no_grad():
        student.classifier.bias += torch.inf
    with pytest.raises(DataError) as caught:
        fit(student, data, FitOptions(epochs=1))
    assert caught.value.code == "CK-D022"


def test_training_stops_when_nothing_gets_better(data: Labelled) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.2, 0.9])
    seen: list[tuple[float, str]] = []
    student = model()
    options = FitOptions(epochs=7, batch=16, patience=2)
    done = fit(student, data, options, score=lambda _: next(scores), progress=lambda *what: seen.append(what))
    assert (len(done.losses), done.best) == (6, 3), "an equal score counts as a better one"
    assert seen[-1][0] == 1.0


def test_a_step_of_two_batches_is_a_step_of_one_twice_as_large(data: Labelled) -> None:
    whole, parts = model(), model()
    for student in (whole, parts):
        student.config.classifier_dropout = 0.0
        student.dropout.p = 0.0
    equal = Labelled(data.rows, data.labels, data.collate, lambda _: 1)
    fit(whole, equal, FitOptions(epochs=1, batch=48))
    fit(parts, equal, FitOptions(epochs=1, batch=24, accumulation=2))
    for left, right in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-4)


def test_training_in_bfloat16_leaves_float32(data: Labelled) -> None:
    exact, rounded = model(), model()
    losses = [
        fit(student, data, FitOptions(epochs=1, batch=8, bf16=bf16)).losses[0]
        for student, bf16 in ((exact, False), (rounded, True))
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.float32}


SECOND = 0.04
"""What the score asks of the weights; see `_best_at_second`."""

TARGETS = 3 * torch.randn(48, 3, generator=torch.Generator().manual_seed(1))


def _train(data: Labelled, folder: Path | None, warn: Any = None, **more: Any) -> Any:
    """Three epochs of six steps with dropout, a learned temperature, and scores of which the second is the best."""
    student = model()
    options = FitOptions(epochs=3, batch=8, lr=1e-2, save_every=5, **more)
    done = fit(
        student, data, options, targets=TARGETS, policy=Curriculum(), score=_best_at_second, folder=folder, warn=warn
    )
    return student, done


def _best_at_second(student: Any) -> float:
    """The second epoch's weights score best, whoever asks, and when."""
    return -abs(float(student.classifier.bias.detach().abs().sum()) - SECOND)


def test_killed_training_goes_on_and_ends_bit_equal(data: Labelled, tmp_path: Path) -> None:
    whole, expected = _train(data, None)
    last = random.randrange(6, 18)
    calls = iter(range(1, 100))

    def collate(items: Any) -> Any:
        if next(calls) > last:  # no batch is put together before its step
            os.kill(os.getpid(), signal.SIGKILL)
        return data.collate(items)

    mortal = Labelled(data.rows, data.labels, collate, data.length)
    assert statuses([forked(lambda: _train(mortal, tmp_path / "work"))]) == [-signal.SIGKILL]
    assert list((tmp_path / "work").glob("labelled-*/checkpoint-*"))
    notes: list[str] = []
    resumed, done = _train(data, tmp_path / "work", notes.append)
    assert done == expected, f"killed at batch {last}"
    assert "goes on from step" in notes[0]
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right), f"killed at batch {last}"
    assert list((tmp_path / "work").iterdir()) == []


def test_logits_are_kept_and_found_again(data: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = model().eval()
    first = cached_logits(teacher, data.rows, data.collate, tmp_path)
    assert torch.allclose(first, logits_of(teacher, data.rows, data.collate), atol=2e-3)
    (file,) = tmp_path.glob("logits-*.npy")
    assert np.load(file).dtype == np.float16
    with monkeypatch.context() as patch:
        patch.setattr(teacher, "forward", None)  # it isn't run again
        assert torch.equal(cached_logits(teacher, data.rows, data.collate, tmp_path), first)
    with torch.no_grad():
        teacher.classifier.bias += 1
    assert not torch.allclose(cached_logits(teacher, data.rows, data.collate, tmp_path), first, atol=0.5)
    assert len(list(tmp_path.glob("logits-*.npy"))) == 2


def test_logits_that_are_no_numbers(data: Labelled, tmp_path: Path) -> None:
    teacher = model().eval()
    with torch.no_grad():
        teacher.classifier.bias += torch.nan
    with pytest.raises(DataError) as caught:
        cached_logits(teacher, data.rows, data.collate, tmp_path)
    assert caught.value.code == "CK-D024"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.jsonl"]
