"""Training on labels and logits: it learns, repeats itself, keeps the best epoch, and refuses what doesn't fit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
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
from compresskit.train.policies import Exponential
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


class _Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), torch.inf))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.weight * torch.zeros(len(input_ids), 3))


def test_a_loss_that_is_no_number(data: Labelled) -> None:
    with pytest.raises(DataError) as caught:
        fit(_Broken(), data, FitOptions(epochs=1))
    assert caught.value.code == "CK-D022"


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
