"""torch-pruning's importance criteria, asked about the neurons of one feed-forward network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning.pruner import function
from torch_pruning.pruner import importance as library

from compresskit.core.weights import WeightView

LIBRARY = {
    "magnitude": library.MagnitudeImportance,
    "lamp": library.LAMPImportance,
    "fpgm": library.FPGMImportance,
    "activation": library.ActivationImportance,
    "random": library.RandomImportance,
}
"""Criteria of ``torch_pruning.pruner.importance`` that a group of neuron rows and output columns has a meaning for.

Left out: ``BNScaleImportance`` (there are no batch norms), ``TaylorImportance``, ``HessianImportance`` and
``OBDCImportance`` (they want gradients of a labelled loss for every weight; ``taylor`` and ``obs`` here need none).
"""


@dataclass(frozen=True)
class _Dependency:
    """One matrix of a group, with the two names that the library uses for each of its facts."""

    layer: nn.Linear
    pruning_fn: Any

    @property
    def target(self) -> Any:
        return type("Target", (), {"module": self.layer})

    @property
    def handler(self) -> Any:
        return self.pruning_fn


@dataclass(frozen=True)
class _Item:
    dep: _Dependency
    idxs: list[int]
    root_idxs: list[int]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.dep, self.idxs))


def from_library(
    name: str, inputs: Sequence[WeightView], output: WeightView, *, seed: int = 0, abs_sum: Tensor | None = None
) -> Tensor:
    """Scores (W,) by the criterion ``name`` of ``LIBRARY`` for the group of rows of ``inputs`` and columns of
    ``output``.

    The group is put together here: the library's own dependency graph doesn't see ``Conv1D``, and never returns for
    grouped key-value heads.

    Args:
        seed: for ``random``.
        abs_sum: Σ |x| of the output's inputs (W,), for ``activation``.
    """
    indices = list(range(output.in_features))
    consumer = _as_linear(output)
    members = [_Dependency(_as_linear(item), function.prune_linear_out_channels) for item in inputs]
    members.append(_Dependency(consumer, function.prune_linear_in_channels))
    if abs_sum is not None:
        consumer._importance = abs_sum.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scores: Tensor = LIBRARY[name]()([_Item(member, indices, indices) for member in members])
    return scores.double().cpu()


def _as_linear(item: WeightView) -> nn.Linear:
    layer = nn.Linear(item.in_features, item.out_features, bias=False, device="meta")
    layer.weight = nn.Parameter(item.weight.detach().float(), requires_grad=False)
    return layer
