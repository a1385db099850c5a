"""How much a unit (a neuron, a head) matters. Higher scores stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning.pruner import function
from torch_pruning.pruner import importance as library

from compresskit.core.weights import WeightView

LIBRARY = ("lamp", "fpgm", "random")


def wanda(square_sum: Tensor, count: int, output: Tensor) -> Tensor:
    """|x_j| · |W_out,j|: root mean square of the activation times the norm of the column that it feeds, (I,).

    Source: Sun et al. 2023 (arXiv 2306.11695), eq. 1, summed over the output rows for a whole unit.
    """
    return (square_sum / count).sqrt().to(output.device) * output.double().norm(dim=0)


def magnitude(inputs: Sequence[Tensor], output: Tensor) -> Tensor:
    """Squared norm of all weights of a neuron: its rows of the inputs and its column of the output, (I,)."""
    return sum((weight.double().square().sum(1) for weight in inputs), output.double().square().sum(0))


@dataclass(frozen=True)
class _Member:
    """One matrix of a group, as torch-pruning's importance classes want it."""

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
    dep: _Member
    idxs: list[int]
    root_idxs: list[int]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.dep, self.idxs))


def from_library(name: str, inputs: Sequence[WeightView], output: WeightView, seed: int) -> Tensor:
    """A criterion of torch-pruning, asked for one group: rows of ``inputs`` and columns of ``output``.

    The group is built here, since the library's own dependency graph doesn't see Conv1D and never returns for grouped
    key-value heads.
    """
    width = output.in_features
    indices = list(range(width))
    members = [_Member(_as_linear(item), function.prune_linear_out_channels) for item in inputs]
    members.append(_Member(_as_linear(output), function.prune_linear_in_channels))
    group = [_Item(member, indices, indices) for member in members]
    if name == "random":
        return torch.rand(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    criteria = {"lamp": library.LAMPImportance, "fpgm": library.FPGMImportance}
    scores: Tensor = criteria[name](p=2)(group)
    return scores.double()


def _as_linear(item: WeightView) -> nn.Linear:
    layer = nn.Linear(item.in_features, item.out_features, bias=False, device="meta")
    layer.weight = nn.Parameter(item.weight.detach().float(), requires_grad=False)
    return layer
