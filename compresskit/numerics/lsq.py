"""Rounding that can be trained through: straight-through estimators for weights, and learned steps for their scales.

Shapes: G groups of g weights each; a code q in 0 … 2^b - 1 stands for s (q - z).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from compresskit.numerics.rtn import stored


def gradient_share(group: int, bits: int) -> float:
    """1 / √(g · 2^(b-1)): by which the gradient of a step is multiplied (Esser et al. 2020, section 2.2)."""
    return float((group * 2 ** (bits - 1)) ** -0.5)


def fake_quantized(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """What the nearest codes of ``weight`` (…, g) stand for, with gradients for the weights and the step.

    Weights take the gradient of what they became, inside the range of the codes, and none beyond it (Bengio et al.
    2013, arXiv 1308.3432). A step takes Σ ∂L/∂ŵ · d / √(g · 2^(b-1)), with d = (q - z) - w/s inside the range and
    d = q - z at its ends and beyond (Esser et al., LSQ, ICLR 2020, eq. 3: arXiv 1902.08153).

    Args:
        scale: (…, 1), as it will be stored; may be negative. zero: (…, 1), fixed.
    """
    return cast(Tensor, _LearnedStep.apply(weight, scale, zero, bits))


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(weight, scale, zero)
        ctx.bits = bits
        steps = torch.round(weight / scale)
        return ((steps + zero).clamp(0, 2**bits - 1) - zero) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, scale, zero = ctx.saved_tensors
        (gradient,) = gradients
        ratio = weight / scale
        low, high = -zero, 2**ctx.bits - 1 - zero
        inside = (ratio > low) & (ratio < high)
        kept = torch.round(ratio).clamp(low, high)
        of_step = (gradient * torch.where(inside, kept - ratio, kept)).sum(-1, keepdim=True)
        share = gradient_share(weight.shape[-1], ctx.bits)
        return gradient * inside, of_step * share, None, None


def as_stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``scale`` as ``dtype`` holds it; the gradient passes straight through the rounding."""
    return carried(scale, stored(scale, dtype))


def carried(carrier: Tensor, value: Tensor) -> Tensor:
    """``value``, whose gradient goes to ``carrier`` as it is: exact in its values, where a sum of the two isn't."""
    return cast(Tensor, _Carried.apply(carrier, value))


class _Carried(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, carrier: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def step_gradient_oracle(weight: list[float], gradient: list[float], scale: float, zero: float, bits: int) -> float:
    """The gradient of one group's step by equation 3, number by number."""
    total = 0.0
    for value, outer in zip(weight, gradient, strict=True):
        low, high = -zero, 2**bits - 1 - zero
        ratio = value / scale
        if ratio <= low:
            slope = low
        elif ratio >= high:
            slope = high
        else:
            slope = round(ratio) - ratio
        total += outer * slope
    return total / (len(weight) * 2 ** (bits - 1)) ** 0.5
