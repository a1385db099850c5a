"""The order in which rows are seen: the same for one process that accumulates as for several that share the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from compresskit.core import processes

Draw = Callable[[torch.Generator], list[list[int]]]
"""The batches of the next pass, as numbers of rows; always equally many."""


class BatchOrder(Sampler[list[int]]):
    """The batches of this process, pass by pass; a pass is a function of the seed and of its number.

    The batches of a pass are dealt out in turn, so that a step of n processes takes the same ones as a step of one
    process that accumulates n. A pass that isn't a whole number of steps is filled up with its own first batches.

    Args:
        draw: gives the passes, one after the other.
        batches: how many ``draw`` gives.
        accumulation: batches of one process in a step.
    """

    def __init__(self, draw: Draw, batches: int, seed: int, accumulation: int = 1) -> None:
        self.draw, self.seed = draw, seed
        step = accumulation * processes.count()
        self.total = batches + -batches % step
        self.epoch = 0
        self._generator = torch.Generator()
        self._drawn = 0
        self._batches: list[list[int]] = []

    @property
    def batch_sampler(self) -> BatchOrder:
        """Itself: ``Trainer`` looks here for what it tells the number of the pass."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Go to the pass of this number, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.total // processes.count()

    def __iter__(self) -> Iterator[list[int]]:
        whole = list(islice(cycle(self._of(self.epoch)), self.total))
        return iter(whole[processes.index() :: processes.count()])

    def _of(self, epoch: int) -> list[list[int]]:
        if epoch + 1 < self._drawn or not self._drawn:
            self._generator.manual_seed(self.seed)
            self._drawn = 0
        while self._drawn <= epoch:
            self._batches = self.draw(self._generator)
            self._drawn += 1
        return self._batches


def by_length(lengths: Sequence[int], batch: int, step: int) -> Draw:
    """Random order with rows of similar length together, the longest first, by ``Trainer``'s rule.

    Args:
        step: rows of a step, over which lengths are brought together.
    """

    def draw(generator: torch.Generator) -> list[list[int]]:
        # A torch.utils.data.DataLoader begins each pass with a draw; without it the order would be another one.
        torch.empty((), dtype=torch.int64).random_(generator=generator)
        numbers = get_length_grouped_indices(list(lengths), step, generator=generator)
        return [numbers[start : start + batch] for start in range(0, len(numbers), batch)]

    return draw
