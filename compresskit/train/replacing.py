"""Training in which blocks of a student stand in, by chance, for runs of blocks of the model it replaces.

Shapes: G groups of blocks, as many as the student has blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.calibrate.forward import hidden_of
from compresskit.core import anatomy
from compresskit.core.context import Batch
from compresskit.train.objective import Objective, Targets


def replacing_rate(share: float, start: float, until: float) -> float:
    """Probability that a successor stands in: from ``start`` linearly to 1 at the share ``until`` of training, then 1.

    Xu et al. 2020, equation 6: p = min(1, k t + b).
    """
    if share >= until:
        return 1.0
    return min(1.0, start + (1.0 - start) * share / until)


def runs(total: int, count: int) -> list[range]:
    """``total`` blocks cut into ``count`` runs of neighbours, as equal as can be."""
    bounds = [round(number * total / count) for number in range(count + 1)]
    return [range(first, last) for first, last in pairwise(bounds)]


@dataclass
class ReplacingObjective:
    """The loss of ``inner``, of a student some of whose blocks are replaced by those of ``predecessor``.

    For each batch and each block of the student it is drawn anew whether it stands in for its run of the predecessor's
    blocks, or whether these run themselves. The predecessor is never trained.

    Args:
        start, until: of ``replacing_rate``.
    """

    inner: Objective
    predecessor: PreTrainedModel = field(repr=False)
    start: float = 0.3
    until: float = 0.5
    share: float = 0.0
    per_token: frozenset[str] = frozenset()

    def key(self) -> str:
        return f"replacing {self.start} {self.until} {self.inner.key()}"

    def come_to(self, share: float) -> None:
        """How much of the training is done, from 0 to 1."""
        self.share = share

    def prepare(self, teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch) -> None:
        # The student trains in float32. PreTrainedModel's own `float` refuses quantized models.
        nn.Module.float(self.predecessor).requires_grad_(False)
        self.inner.prepare(teacher, student, batch)
        self.per_token = self.inner.per_token

    def targets(self, teacher: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        return self.inner.targets(teacher, batch)

    def loss(self, student: PreTrainedModel, batch: Batch, targets: Targets) -> Tensor:
        ours, theirs = (anatomy.of(model).stacks[0].blocks for model in (student, self.predecessor))
        stays = torch.rand(len(ours)) >= replacing_rate(self.share, self.start, self.until)
        old = {
            ours[number].path: [self.predecessor.get_submodule(theirs[index].path) for index in run]
            for number, run in enumerate(runs(len(theirs), len(ours)))
            if stays[number]
        }
        with standing_in(student, old):
            loss = self.inner.loss(student, batch, targets)
        if loss.requires_grad:
            return loss
        # All blocks were the predecessor's: nothing is learned from this batch.
        return loss + 0.0 * sum(item.sum() for item in student.parameters() if item.requires_grad)


@contextmanager
def standing_in(model: nn.Module, blocks: Mapping[str, Sequence[nn.Module]]) -> Iterator[None]:
    """Inside, the module at each path computes what the modules given for it compute one after the other."""
    changed = [model.get_submodule(path) for path in blocks]
    try:
        for module, others in zip(changed, blocks.values(), strict=True):
            vars(module)["forward"] = _in_turn(others)
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)


def _in_turn(blocks: Sequence[nn.Module]) -> Callable[..., Any]:
    def forward(*given: Any, **named: Any) -> Any:
        output: Any = None
        for block in blocks:
            output = block(*given, **named)
            if given:
                given = (hidden_of(output), *given[1:])
            else:
                named["hidden_states"] = hidden_of(output)
        return output

    return forward
