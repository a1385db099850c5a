"""How much an input of a matrix matters, and which to keep. Higher scores stay.

An input stands for the neuron, or with its group for the attention head, that feeds the matrix.

Shapes: W (O, I), a group of g neighbouring inputs, G = I / g groups, moments C (I, I) of the inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compresskit.numerics.refit import dropped, typical_energy


def wanda_matrix(weight: Tensor, norms: Tensor) -> Tensor:
    """|W_ij| · ‖x_j‖, (O, I), with ‖x_j‖ (I,) over the calibration tokens. Source: Wanda (arXiv 2306.11695), eq. 1."""
    return weight.double().abs() * norms.double()


def wanda(weight: Tensor, norms: Tensor, size: int = 1) -> Tensor:
    """Wanda's score of whole inputs: the Euclidean norm of ``wanda_matrix`` over the rows and the ``size`` inputs of a
    group, (G,): √Σ_j ‖W_:j‖² ‖x_j‖²."""
    return group_sums(weight.double().square().sum(0) * norms.double().square(), size).sqrt()


def group_sums(scores: Tensor, size: int) -> Tensor:
    """Sums over groups of ``size`` neighbouring inputs, (I,) -> (G,)."""
    return scores.unflatten(0, (-1, size)).sum(-1)


def removal_costs(weight: Tensor, inverse: Tensor) -> Tensor:
    """What removing each input costs when all others are refitted to it, (I,): ‖W_:j‖² / [C⁻¹]_jj.

    Source: Optimal Brain Surgeon (Hassibi & Stork 1993), eq. 5, for the squared error of all rows of W at once.
    """
    return weight.double().square().sum(0) / inverse.diagonal()


def damped_inverse(covariance: Tensor, ridge: float) -> Tensor:
    """(C + λ I)⁻¹ in float64 with λ = ``ridge`` times the mean variance of inputs that aren't massive.

    Where all of those are dead, times the mean variance of all; where every input is dead, ``ridge`` itself.

    Raises:
        torch.linalg.LinAlgError: if that is singular.
    """
    variance = covariance.diagonal()
    damping = ridge * (typical_energy(variance) or float(variance.mean()) or 1.0)
    identity = torch.eye(covariance.shape[0], dtype=torch.float64, device=covariance.device)
    return torch.linalg.inv(covariance.double() + damping * identity)


def eliminate(
    weight: Tensor, covariance: Tensor, count: int, *, ridge: float, rounds: int = 16, pinned: Tensor | None = None
) -> Tensor:
    """The ``count`` inputs that are left when always the cheapest go, the others being refitted after each round.

    With ``rounds`` = number of inputs to drop this is Optimal Brain Surgeon on columns; fewer rounds drop several at
    once and cost little quality.

    Args:
        pinned: inputs that must stay; at most ``count``.

    Returns:
        ascending indices (count,).

    Raises:
        torch.linalg.LinAlgError: if the damped moments are singular.
    """
    inverse = damped_inverse(covariance, ridge)
    left = weight.double().to(inverse.device)
    alive = torch.arange(left.shape[1], device=inverse.device)
    stays = torch.zeros(left.shape[1], dtype=torch.bool, device=inverse.device)
    if pinned is not None:
        stays[pinned] = True
    surplus = left.shape[1] - count
    for turn in range(rounds):
        now = math.ceil(surplus / (rounds - turn))
        if now == 0:
            continue
        surplus -= now
        costs = removal_costs(left, inverse).masked_fill(stays[alive], torch.inf)
        gone = torch.sort(costs, stable=True).indices[:now]
        rest = dropped(gone, len(alive))
        step = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, rest])
        left = left[:, rest] - left[:, gone] @ step
        inverse = inverse[rest][:, rest] - inverse[rest][:, gone] @ step
        alive = alive[rest]
    return alive


def top_indices(scores: Tensor, count: int, pinned: Tensor | None = None) -> Tensor:
    """The ``count`` highest scores, ``pinned`` ones first; ascending indices. Equal scores go to the lower index."""
    scores = scores.double().clone()
    if pinned is not None:
        scores[pinned] = torch.inf
    order = torch.sort(scores, descending=True, stable=True).indices
    return torch.sort(order[:count]).values
