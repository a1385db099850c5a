"""Weights in 8-bit floats, E4M3 without infinities (Micikevicius et al. 2022, arXiv 2209.05433).

Four bits of exponent and three of mantissa: ± 2^-9 … 448, steps of 1/8 of the power of two below a value.
"""

from __future__ import annotations

import torch
from torch import Tensor

TYPE = torch.float8_e4m3fn
LARGEST = 448.0


def quantize(weight: Tensor, *, whole: bool = False) -> tuple[Tensor, Tensor]:
    """Codes (O, I) in ``TYPE`` and scales (O, 1), or (1, 1) if ``whole``, in float32, of ``weight`` (O, I).

    The largest of a row, or of the matrix, becomes ``LARGEST``. Rows of zeros get the scale 1.
    """
    wide = weight.detach().float()
    largest = wide.abs().amax().reshape(1, 1) if whole else wide.abs().amax(1, keepdim=True)
    scale = _scale(largest)
    return to_float8(wide / scale), scale


def _scale(largest: Tensor) -> Tensor:
    """By which values are divided of which ``largest`` is the largest magnitude; 1 for zeros."""
    return torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest)).clamp(min=torch.finfo().tiny)


def to_float8(values: Tensor) -> Tensor:
    """The nearest of ``TYPE``, those beyond ``LARGEST`` at it: a cast alone may make them NaN."""
    return values.clamp(-LARGEST, LARGEST).to(TYPE)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """s q in float32."""
    return codes.float() * scale


def table() -> Tensor:
    """All finite values of the format, ascending, without -0, in float64: the oracle of ``to_float8``."""
    fractions = torch.arange(8, dtype=torch.float64) / 8
    parts = [fractions * 2.0**-6] + [(1 + fractions) * 2.0**exponent for exponent in range(-6, 9)]
    positive = torch.cat(parts)[:-1]  # the last stands for NaN
    return torch.cat([-positive[1:].flip(0), positive])


def linear(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """x Wᵀ, (N, I) -> (N, O), by products of 8-bit floats: inputs get a scale for each row; result in float32.

    I and O must be divisible by 16. The sums come out in float32 and are scaled then, so that neither rows' nor
    channels' scales need kernels of their own.
    """
    wide = x.float()
    own = _scale(wide.abs().amax(1, keepdim=True))
    one = torch.ones((), device=x.device)
    found = torch._scaled_mm(to_float8(wide / own), codes.T, scale_a=one, scale_b=one, out_dtype=torch.float32)
    return found * own * scale.reshape(1, -1)
