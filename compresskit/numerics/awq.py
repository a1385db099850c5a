"""AWQ: weights that meet large inputs are scaled up before they are rounded, and the inputs down.

Lin et al. 2024 (arXiv 2306.00978). Shapes: W (O, I), second moments of the inputs H = Σ x xᵀ (I, I), scales s (I,).
(W diag(s)) (diag(1/s) x) = W x: without rounding nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compresskit.numerics.gptq import output_error
from compresskit.numerics.rtn import Codes

ALPHAS = tuple(number / 10 for number in range(11))
"""Exponents that are tried; 0 leaves the weights as they are."""

FINALISTS = 2
"""Exponents whose grids are searched thoroughly, besides 0."""

Rounding = Callable[[Tensor, Tensor, bool], Codes]
"""Codes for a weight (O, I), the importance (I,) of its columns, and whether to take the time for the best grid."""


@dataclass(frozen=True)
class Scaled:
    """The best scales for matrices that read one input.

    Args:
        scale: (I,) float32 by which columns were multiplied, or None where rounding to nearest was best.
        alpha: the exponent.
        codes: of each matrix times ``scale``.
        error: Σ |ΔW x|² of all of them.
        plain_error: the same without scales.
    """

    scale: Tensor | None
    alpha: float
    codes: tuple[Codes, ...]
    error: float
    plain_error: float


def column_scale(magnitude: Tensor, alpha: float) -> Tensor:
    """s = m^alpha for the mean |x| of each input (I,), centred around 1; 1 for inputs that never occur."""
    alive = magnitude > 0
    powers = torch.where(alive, magnitude.double(), torch.ones_like(magnitude, dtype=torch.float64)) ** alpha
    if bool(alive.any()):
        centre = (powers[alive].max() * powers[alive].min()).sqrt()
        powers = torch.where(alive, powers / centre, torch.ones_like(powers))
    return powers.clamp(1e-4, 1e4).float()


def search(weights: Sequence[Tensor], gram: Tensor, magnitude: Tensor, rounding: Rounding) -> Scaled:
    """The exponent of ``ALPHAS`` with the smallest output error over all ``weights`` (O_k, I).

    The result is never worse than the weights rounded as they are, which alpha 0 is.

    Args:
        gram: Σ x xᵀ of the input that they share.
        magnitude: mean |x|, (I,).
    """
    energy = gram.diagonal().double().clamp(min=0)
    mean = energy.mean()
    importance = energy / mean + 1e-4 if mean > 0 else torch.ones_like(energy)

    def tried(alpha: float, thorough: bool) -> tuple[float, Tensor, list[Codes]]:
        scale = column_scale(magnitude, alpha).to(weights[0].device)
        heavy = importance.to(scale.device) / scale.double().square()
        codes = [rounding(weight * scale, heavy, thorough) for weight in weights]
        changes = [made.values() / scale - weight for made, weight in zip(codes, weights, strict=True)]
        return sum(output_error(change, gram) for change in changes), scale, codes

    order = sorted(ALPHAS, key=lambda alpha: tried(alpha, False)[0])
    found = {alpha: tried(alpha, True) for alpha in dict.fromkeys((0.0, *order[:FINALISTS]))}
    alpha = min(found, key=lambda each: (found[each][0], each))
    error, scale, codes = found[alpha]
    return Scaled(None if alpha == 0 else scale, alpha, tuple(codes), error, found[0.0][0])
