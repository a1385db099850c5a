"""Moments of the inputs of a matrix, token by token in float64: what ``calibrate.moments`` computes fast.

Shapes: N tokens, I features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MomentsOfRows:
    """Σ x xᵀ (I, I), Σ x, Σ x², Σ |x|, max |x| (I,) over N tokens."""

    gram: Tensor
    total: Tensor
    square_sum: Tensor
    abs_sum: Tensor
    abs_max: Tensor
    count: int


def moments_of_rows(rows: Tensor, attended: Tensor) -> MomentsOfRows:
    """The moments of those ``rows`` (N, I) that ``attended`` (N,) marks."""
    features = rows.shape[1]
    gram = torch.zeros(features, features, dtype=torch.float64)
    total, square_sum, abs_sum, abs_max = torch.zeros(4, features, dtype=torch.float64)
    count = 0
    for row, counts in zip(rows.double(), attended, strict=True):
        if counts:
            gram += torch.outer(row, row)
            total += row
            square_sum += row**2
            abs_sum += row.abs()
            abs_max = torch.maximum(abs_max, row.abs())
            count += 1
    return MomentsOfRows(gram, total, square_sum, abs_sum, abs_max, count)


def block_influence(entering: Tensor, leaving: Tensor) -> float:
    """1 - mean cosine of the rows of ``entering`` and ``leaving``, (N, I) each; ShortGPT, eq. 1."""
    cosines = []
    for x, y in zip(entering.double(), leaving.double(), strict=True):
        cosines.append(float(x @ y / (x.norm() * y.norm())))
    return 1 - sum(cosines) / len(cosines)


def saliency_of_rows(activations: Tensor, gradients: Tensor, groups: int) -> Tensor:
    """(Σ_{t, i in group} a g)² for one text: activations a and gradients g are (T, I), the result (groups,).

    The squared first-order change of a loss when the group is set to zero (Molchanov et al. 2019, eq. 8).
    """
    tokens, features = activations.shape
    size = features // groups
    change = torch.zeros(groups, dtype=torch.float64)
    products = activations.detach().double() * gradients.detach().double()
    for token in range(tokens):
        for feature in range(features):
            change[feature // size] += products[token, feature]
    return change**2
