"""Least squares after pruning: what the kept inputs should give, so that the output stays what it was.

Shapes: W (O, I), moments of the inputs x: Σ x xᵀ (I, I) over N tokens, μ their mean (I,); K kept inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 0.03
"""Default strength of the ridge, in units of the mean variance of the inputs."""

RETRIES = 8
"""How often the damping is raised tenfold before a system counts as unsolvable."""

_WEAKEST = 1e-9


@dataclass(frozen=True)
class Refit:
    """Refitted columns.

    Args:
        weight: (O, K), in the type of the weight that it replaces.
        bias_shift: what the bias gains, (O,) float64; zero where no intercept was fitted.
        error_before: root mean square of what the output loses without a refit, relative to the output's own.
        error_after: the same with the refit; never more.
        damping: λ that was used, in units of the mean variance; 0.0 if the refit was no better and left away.
    """

    weight: Tensor
    bias_shift: Tensor
    error_before: float
    error_after: float
    damping: float


def ridge_refit(
    weight: Tensor, gram: Tensor, mean: Tensor, count: int, keep: Tensor, *, ridge: float = RIDGE, bias: bool = True
) -> Refit:
    """Minimise E|W' x_K + b' - W x|² + λ|W' - W_K|², the ridge towards the weights as they were.

    With C the covariance (with ``bias``: an intercept is fitted too, and b' takes over the mean of what was dropped)
    or second moment, and P the dropped inputs, the solution is W' = W_K + W_P C_PK (C_KK + λ I)⁻¹. λ is ``ridge``
    times the mean variance of inputs that are not massive, raised tenfold while the system can't be solved. Solved in
    float64; errors are those of the result in the weight's own type, and a refit that is no better is left away.

    Raises:
        torch.linalg.LinAlgError: if weights or moments aren't finite, or no damping makes the system solvable.
    """
    wide = weight.double()
    moments, centre = gram.double().to(wide.device) / count, mean.double().to(wide.device)
    if not (bool(torch.isfinite(wide).all()) and bool(torch.isfinite(moments).all())):
        raise torch.linalg.LinAlgError("the weights or the second moments of the inputs aren't finite")
    keep = keep.to(wide.device)
    gone = dropped(keep, wide.shape[1])
    covariance = moments - torch.outer(centre, centre) if bias else moments
    change, damping = _solve(covariance[keep][:, keep], wide[:, gone] @ covariance[gone][:, keep], ridge, covariance)
    plain = weight[:, keep]
    nothing = torch.zeros(wide.shape[0], dtype=torch.float64, device=wide.device)
    before = output_error(wide, plain, nothing, moments, centre, keep)
    fitted = (plain.double() + change).to(weight.dtype)
    shift = wide @ centre - fitted.double() @ centre[keep] if bias else nothing
    after = output_error(wide, fitted, shift, moments, centre, keep)
    if not after < before:
        return Refit(plain, nothing, before, before, 0.0)
    return Refit(fitted, shift, before, after, damping)


def _solve(kept: Tensor, target: Tensor, ridge: float, covariance: Tensor) -> tuple[Tensor, float]:
    """``target`` (C_KK + λ I)⁻¹ and the relative λ with which it could be solved."""
    scale = typical_energy(covariance.diagonal())
    if scale == 0:  # inputs that never vary tell nothing about each other
        return torch.zeros_like(target), 0.0
    identity = torch.eye(kept.shape[0], dtype=kept.dtype, device=kept.device)
    for _ in range(RETRIES):
        factor, failed = torch.linalg.cholesky_ex(kept + ridge * scale * identity)
        if int(failed) == 0:
            solved = torch.cholesky_solve(target.T, factor).T
            if bool(torch.isfinite(solved).all()):
                return solved, ridge
        ridge = max(10 * ridge, _WEAKEST)
    raise torch.linalg.LinAlgError("the second moments of the kept inputs can't be inverted, however damped")


def output_error(
    weight: Tensor, kept_weight: Tensor, shift: Tensor, moments: Tensor, mean: Tensor, keep: Tensor
) -> float:
    """√(E|W' x_K + b' - W x|² / E|W x|²) from moments alone: E xxᵀ (I, I) and E x (I,); 0 for an output of zero."""
    difference = -weight.double()
    difference[:, keep] += kept_weight.double()
    lost = ((difference @ moments) * difference).sum()
    lost += 2 * (shift * (difference @ mean)).sum() + shift.square().sum()
    whole = ((weight.double() @ moments) * weight.double()).sum()
    return float((lost.clamp(min=0) / whole).sqrt()) if whole > 0 else 0.0


def dropped(keep: Tensor, total: int) -> Tensor:
    """The indices below ``total`` that are not in ``keep``, ascending."""
    gone = torch.ones(total, dtype=torch.bool, device=keep.device)
    gone[keep] = False
    return gone.nonzero().reshape(-1)


def massive(energy: Tensor) -> Tensor:
    """Inputs that carry an outsized share of all energy Σ x²: more than 1 %, and more than ten times the mean share.

    A least-squares refit without them blows the other weights up to imitate them, so they must stay.
    """
    share = energy.double() / energy.double().sum().clamp(min=1e-300)
    return torch.nonzero(share > max(0.01, 10 / len(share))).reshape(-1)


def typical_energy(energy: Tensor) -> float:
    """Mean of ``energy`` (I,), massive inputs left out: one of them would make any other look negligible."""
    return float(energy[dropped(massive(energy), len(energy))].mean())
