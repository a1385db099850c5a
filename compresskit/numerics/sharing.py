"""Which layers share parameters, what they start from, and how much the layers have in common.

Shapes: L layers, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cyclic(layers: int, distinct: int) -> list[list[int]]:
    """Groups of the pattern 0 1 … G-1 0 1 …: layer l uses the parameters of l mod G (Takase & Kiyono 2021)."""
    return [list(range(first, layers, distinct)) for first in range(min(layers, distinct))]


def immediate(layers: int, distinct: int) -> list[list[int]]:
    """Groups of the pattern 0 0 … 1 1 …: neighbours share, in runs whose lengths differ by at most one."""
    distinct = min(layers, distinct)
    groups: list[list[int]] = [[] for _ in range(distinct)]
    for layer in range(layers):
        groups[layer * distinct // layers].append(layer)
    return groups


def mean(parameters: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of equal shape, in their dtype; summed in float64."""
    total = torch.zeros_like(parameters[0], dtype=torch.float64)
    for parameter in parameters:
        total += parameter
    return (total / len(parameters)).to(parameters[0].dtype)


def disagreement(groups: Sequence[Sequence[Tensor]]) -> float:
    """√(Σ |W_i - W̄|² / Σ |W_i|²) over parameters (outer) and the layers that are to share each (inner).

    0 for equal layers. Independent ones of equal norm give √(1 - 1/L): nothing in common.
    """
    apart = whole = 0.0
    for parameters in groups:
        common = mean([parameter.detach().double() for parameter in parameters])
        apart += sum(float((parameter.detach().double() - common).square().sum()) for parameter in parameters)
        whole += sum(float(parameter.detach().double().square().sum()) for parameter in parameters)
    return (apart / whole) ** 0.5 if whole > 0 else 0.0
