"""Factorisations of a matrix into two thin ones, and the choice of ranks.

Shapes: W (O, I), factors U (O, R) and D (R, I), second moment of inputs G = Σ x xᵀ (I, I). All in float64.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 1e-6


@dataclass(frozen=True)
class Spectrum:
    """A decomposition W ≈ (left_r) diag(values_r) (right_r), cut anywhere.

    ``left`` (O, K), ``values`` (K,) descending, ``right`` (K, I). Dropping all but the first r values costs
    sqrt(Σ_{i>r} values_i²): in the weight without whitening, in the output summed over the calibration with it.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """U (O, R) and D (R, I), the values split evenly between them."""
        root = self.values[:rank].sqrt()
        return self.left[:, :rank] * root, root[:, None] * self.right[:rank]


def plain(weight: Tensor) -> Spectrum:
    """Singular value decomposition of W: optimal in the Frobenius norm (Eckart & Young)."""
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    return Spectrum(left, values, right)


def whitened(weight: Tensor, gram: Tensor, damping: float = DAMPING) -> Spectrum:
    """Optimal in ‖(W - Ŵ) X‖: decompose W S with S Sᵀ = X Xᵀ, undo S on the right (SVD-LLM, arXiv 2403.07378, eq. 4).

    S is the symmetric root of G by its eigenvectors: Cholesky fails on the singular G of few tokens. Eigenvalues are
    floored at ``damping`` times their mean, so directions that calibration never saw still count a little.
    """
    values, vectors = torch.linalg.eigh(gram.double())
    floor = damping * values.clamp(min=0).mean().clamp(min=torch.finfo(torch.float64).tiny)
    root = values.clamp(min=floor).sqrt()
    found = plain((weight.double() @ vectors) * root)
    return Spectrum(found.left, found.values, (found.right / root) @ vectors.T)


def dense_rank(out_features: int, in_features: int) -> int:
    """The largest rank whose factors hold fewer numbers than the matrix: r < O I / (O + I); 0 if there is none."""
    return (out_features * in_features - 1) // (out_features + in_features)


def rank_for_ratio(out_features: int, in_features: int, ratio: float) -> int:
    """The rank whose factors hold at most ``ratio`` of the matrix's numbers, at least 1."""
    return max(1, int(ratio * out_features * in_features / (out_features + in_features)))


def rank_for_energy(values: Tensor, energy: float) -> int:
    """The smallest rank that keeps ``energy`` of Σ values²."""
    squares = values.double().square()
    total = squares.sum()
    if total <= 0:
        return 1
    reached = torch.cumsum(squares, 0) >= energy * total * (1 - 1e-12)
    return int(reached.int().argmax()) + 1 if bool(reached.any()) else len(values)


def ranks_for_budget(spectra: Sequence[Tensor], shapes: Sequence[tuple[int, int]], budget: float) -> list[int]:
    """Ranks that keep at most ``budget`` of all numbers together, spent greedily where a number saves most loss.

    Args:
        spectra: singular values of each matrix, descending.
        shapes: (O, I) of each.
        budget: share of Σ O I.

    Returns:
        One rank a matrix, at least 1. A rank beyond ``dense_rank`` means that the matrix is better left dense.
    """
    left = budget * sum(rows * columns for rows, columns in shapes)
    relative = [values.double().square() / values.double().square().sum().clamp(min=1e-300) for values in spectra]
    costs = [rows + columns for rows, columns in shapes]
    ranks = [1] * len(spectra)
    left -= sum(costs)
    queue = [
        (-float(gain[1]) / cost, index)
        for index, (gain, cost) in enumerate(zip(relative, costs, strict=True))
        if len(gain) > 1
    ]
    heapq.heapify(queue)
    while queue:
        _, index = heapq.heappop(queue)
        if costs[index] > left:
            continue
        left -= costs[index]
        ranks[index] += 1
        if ranks[index] < len(relative[index]):
            heapq.heappush(queue, (-float(relative[index][ranks[index]]) / costs[index], index))
    return ranks
