"""The order of batches: every row once, the same again, and dealt out in turn."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler

from compresskit.core import processes
from compresskit.train.order import BatchOrder, by_length

LENGTHS = [number % 7 + 1 for number in range(50)]


def passes(order: BatchOrder, *numbers: int) -> list[list[list[int]]]:
    found = []
    for number in numbers:
        order.set_epoch(number)
        found.append(list(order))
    return found


def test_a_pass_holds_every_row_once_and_depends_on_its_number_alone() -> None:
    order = BatchOrder(by_length(LENGTHS, 8, 8), 7, seed=3)
    first, second, again, fifth = passes(order, 0, 1, 0, 4)
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(50))
    assert first == again
    assert first != second
    assert passes(BatchOrder(by_length(LENGTHS, 8, 8), 7, seed=3), 4) == [fifth]
    assert len(order) == len(first) == 7


def test_the_order_is_the_one_of_the_stock_trainer() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        loader = DataLoader(range(50), 8, sampler=LengthGroupedSampler(8, lengths=LENGTHS), collate_fn=list)  # type: ignore[arg-type]
        expected = list(loader)
    (found,) = passes(BatchOrder(by_length(LENGTHS, 8, 8), 7, seed=3), 0)
    assert found == expected


def test_a_pass_is_whole_steps() -> None:
    (plain,) = passes(BatchOrder(by_length(LENGTHS, 8, 8), 7, seed=3), 0)
    order = BatchOrder(lambda generator: by_length(LENGTHS, 8, 8)(generator), 7, seed=3, accumulation=4)
    (filled,) = passes(order, 0)
    assert len(order) == len(filled) == 8
    assert filled == [*plain, plain[0]]
    one = BatchOrder(lambda _: [[0]], 1, seed=0, accumulation=3)
    assert list(one) == [[0], [0], [0]]


def test_processes_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(generator: torch.Generator) -> list[list[int]]:
        numbers: Tensor = torch.randperm(10, generator=generator)
        return [part.tolist() for part in numbers.split(2)]

    (whole,) = passes(BatchOrder(draw, 5, seed=1, accumulation=2), 0)
    monkeypatch.setattr(processes, "count", lambda: 2)
    parts = []
    for number in (0, 1):
        monkeypatch.setattr(processes, "index", lambda number=number: number)
        order = BatchOrder(draw, 5, seed=1)
        assert len(order) == 3
        parts += passes(order, 0)
    assert [batch for pair in zip(*parts, strict=True) for batch in pair] == whole
