"""Several predictions a row: a tag for each word of a sentence, the next word at each place of a text.

Positions of all rows stand one after the other, so that bags, temperatures and losses see them as instances; padding is
never among them. Of a distribution over words the k likeliest are kept, and the rest as one class.

Shapes: N rows, B of a batch, T tokens, M positions of all rows, m of a batch, C classes or words, k kept words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.outputs import outputs_of
from compresskit.numerics.divergences import bucketed
from compresskit.numerics.fusion import wide

_AT_ONCE = 16


@dataclass(frozen=True)
class Positions:
    """Which tokens of each row are instances.

    Args:
        places: of each row, the tokens, (m,) int64 each.
        starts: the number of each row's first position among all, and M, (N + 1,).
        words: (M, k), the classes that a position's target is kept for; None: all.
    """

    places: Sequence[Tensor]
    starts: Tensor
    words: Tensor | None = None

    @classmethod
    def of(cls, places: Sequence[Tensor]) -> Positions:
        """Those of rows with these tokens."""
        counts = torch.tensor([0, *(len(row) for row in places)])
        return cls(tuple(places), counts.cumsum(0))

    def numbers(self, rows: Tensor) -> Tensor:
        """Numbers of the positions of ``rows``, (m,)."""
        return torch.cat([torch.arange(int(self.starts[row]), int(self.starts[row + 1])) for row in rows.tolist()])

    def pick(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Logits of the positions, (m, C), of those of a batch that holds ``rows``, (B, T, C)."""
        chosen = [self.places[row] for row in rows.tolist()]
        batch = torch.repeat_interleave(torch.tensor([len(row) for row in chosen]))
        return logits[batch.to(logits.device), torch.cat(chosen).to(logits.device)]

    def kept(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """What is compared with the targets of the positions ``numbers``: ``logits``, or log p of k + 1 classes."""
        if self.words is None:
            return logits
        return bucketed(wide(logits).log_softmax(-1), self.words[numbers].to(logits.device))


def run_positions(
    model: PreTrainedModel,
    rows: Sequence[Any],
    collate: Callable[[Sequence[Any]], dict[str, Tensor]],
    positions: Positions,
    length: Callable[[Any], int],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers (m,) and logits (m, C) of the positions, batch by batch, in evaluation mode."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda number: length(rows[number]))
    with torch.no_grad():
        for start in range(0, len(order), _AT_ONCE):
            chosen = torch.tensor(order[start : start + _AT_ONCE])
            logits = outputs_of(model, collate([rows[number] for number in chosen.tolist()]))
            yield positions.numbers(chosen), positions.pick(logits, chosen).float().cpu()


def targets_at(parts: Iterator[tuple[Tensor, Tensor]], count: int, top_k: int | None) -> dict[str, Tensor]:
    """The teacher's ``logits`` at all positions, (M, C); or log p of its ``top_k`` likeliest classes and of the rest,
    (M, k + 1), with the numbers of those classes as ``words`` (M, k)."""
    logits: Tensor | None = None
    words: Tensor | None = None
    for numbers, part in parts:
        if top_k is not None and top_k < part.shape[-1]:
            best = part.topk(top_k).indices
            words = best.new_empty(count, top_k) if words is None else words
            words[numbers] = best
            part = bucketed(part.log_softmax(-1), best)
        logits = part.new_empty(count, part.shape[-1]) if logits is None else logits
        logits[numbers] = part
    if logits is None:
        raise ValueError("there is no position")
    return {"logits": logits} | ({} if words is None else {"words": words})
