"""Least squares after pruning: what the kept inputs should give, so that the output stays what it was.

Shapes: W (O, I), moments of the inputs x: G = Σ x xᵀ (I, I) over N tokens, μ their mean (I,); K kept inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-3
RETRIES = 6


@dataclass(frozen=True)
class Refit:
    """Refitted columns (O, K), the change of the bias (O,), and mean squared output errors without and with it."""

    weight: Tensor
    bias_shift: Tensor
    error_before: float
    error_after: float


def ridge_refit(
    weight: Tensor, gram: Tensor, mean: Tensor, count: int, keep: Tensor, *, ridge: float = RIDGE, bias: bool = True
) -> Refit:
    """Minimise E|W' x_K + b' - W x|² + λ|W' - W_K|², the ridge towards the weights as they were.

    With ``bias`` an intercept is fitted too: moments are centred, and b' takes over the mean of what was dropped.
    λ is ``ridge`` times the mean variance of the kept inputs; it is raised tenfold while the system can't be solved.

    Raises:
        torch.linalg.LinAlgError: if no damping makes the system solvable (inputs that aren't finite).
    """
    wide = weight.double()
    moments = gram.double() / count
    centre = mean.double() if bias else torch.zeros_like(mean, dtype=torch.float64)
    covariance = moments - torch.outer(centre, centre)
    kept = covariance[keep][:, keep]
    cross = covariance[:, keep]
    damping = ridge * kept.diagonal().mean().clamp(min=1e-12)
    identity = torch.eye(len(keep), dtype=torch.float64, device=kept.device)
    target = wide @ cross
    for _ in range(RETRIES):
        factor, failed = torch.linalg.cholesky_ex(kept + damping * identity)
        if int(failed) == 0:
            solved = torch.cholesky_solve((target + damping * wide[:, keep]).T, factor).T
            shift = wide @ centre - solved @ centre[keep]
            before = output_error(wide, wide[:, keep], torch.zeros_like(shift), moments, mean.double(), keep)
            after = output_error(wide, solved, shift if bias else torch.zeros_like(shift), moments, mean.double(), keep)
            return Refit(solved, shift if bias else torch.zeros_like(shift), before, after)
        damping = 10 * damping
    raise torch.linalg.LinAlgError("the second moments of the kept inputs can't be inverted, however damped")


def output_error(
    weight: Tensor, kept_weight: Tensor, shift: Tensor, moments: Tensor, mean: Tensor, keep: Tensor
) -> float:
    """E|W' x_K + b' - W x|² / O from moments alone: E xxᵀ (I, I) and E x (I,)."""
    difference = -weight.clone()
    difference[:, keep] += kept_weight
    quadratic = ((difference @ moments) * difference).sum()
    linear = 2 * (shift * (difference @ mean)).sum()
    return float((quadratic + linear + shift.square().sum()) / weight.shape[0])


def massive(square_sum: Tensor) -> Tensor:
    """Inputs that carry an outsized share of all energy: more than 1 %, and more than ten times the mean share.

    A least-squares refit without them blows the other weights up to imitate them, so they must stay.
    """
    share = square_sum.double() / square_sum.double().sum().clamp(min=1e-300)
    return torch.nonzero(share > max(0.01, 10 / len(share))).reshape(-1)


def top_indices(scores: Tensor, count: int, pinned: Tensor | None = None) -> Tensor:
    """The ``count`` highest scores, ``pinned`` ones first; ascending indices. Equal scores go to the lower index."""
    scores = scores.double().clone()
    if pinned is not None and len(pinned):
        scores[pinned] = torch.inf
    order = torch.sort(scores, descending=True, stable=True).indices
    return torch.sort(order[:count]).values
