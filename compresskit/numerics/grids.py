"""Quantization grids: codes, scales, zero points, and packing.

Shapes: O rows, I columns, G groups of g columns each. A *grid* maps w to the code round(w / s) + z, kept in a range of
2^b integers; back it gives s (q - z). For values inside the range the error is at most s / 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

REFINEMENTS = 3


@dataclass(frozen=True)
class Grid:
    """Codes (O, I) with their scales (O, G) and zero points (O, G); ``zero`` None stands for 0."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    def values(self) -> Tensor:
        """What the codes stand for, (O, I), in the scales' dtype."""
        groups = self.scale.shape[1]
        codes = self.codes.reshape(self.codes.shape[0], groups, -1).to(self.scale.dtype)
        if self.zero is not None:
            codes = codes - self.zero.unsqueeze(-1).to(self.scale.dtype)
        return (codes * self.scale.unsqueeze(-1)).reshape(self.codes.shape)


def grouped(weight: Tensor, group: int | None) -> Tensor:
    """``weight`` (O, I) as (O, G, g); ``group`` None is one group a row."""
    size = weight.shape[1] if group is None else group
    return weight.reshape(weight.shape[0], -1, size)


def symmetric(weight: Tensor, bits: int, group: int | None = None) -> Grid:
    """Codes in -(2^(b-1) - 1) … 2^(b-1) - 1 with s = max|w| / (2^(b-1) - 1) per group; an all-zero group gets s = 1.

    Codes are int8, scales float32.
    """
    parts = grouped(weight.float(), group)
    top = 2 ** (bits - 1) - 1
    scale = _safe(parts.abs().amax(-1, keepdim=True) / top)
    codes = torch.round(parts / scale).clamp(-top, top).to(torch.int8)
    return Grid(codes.reshape(weight.shape), scale.squeeze(-1), None)


def asymmetric(
    weight: Tensor, bits: int, group: int | None = None, *, scale_dtype: torch.dtype = torch.float32
) -> Grid:
    """Codes in 0 … 2^b - 1 with a zero point per group; scales are fitted by least squares after rounding.

    Starting from the range's ends, codes and scale are improved in turn: with the codes fixed,
    s = <w, q - z> / |q - z|² is optimal; the fit of lowest squared error is kept. The scales are rounded to
    ``scale_dtype`` before the last rounding of codes, so what is stored is what was fitted.
    """
    parts = grouped(weight.float(), group)
    top = 2**bits - 1
    low = parts.amin(-1, keepdim=True).clamp(max=0)
    high = parts.amax(-1, keepdim=True).clamp(min=0)
    scale = _safe((high - low) / top)
    zero = torch.round(-low / scale).clamp(0, top)
    best_scale, best_error = scale, torch.full_like(scale, torch.inf)
    for _ in range(REFINEMENTS):
        rounded = _safe(scale.to(scale_dtype).float())
        codes = torch.round(parts / rounded + zero).clamp(0, top)
        steps = codes - zero
        error = (parts - rounded * steps).square().sum(-1, keepdim=True)
        better = error < best_error
        best_scale = torch.where(better, rounded, best_scale)
        best_error = torch.where(better, error, best_error)
        scale = _safe((parts * steps).sum(-1, keepdim=True) / steps.square().sum(-1, keepdim=True).clamp(min=1e-12))
    codes = torch.round(parts / best_scale + zero).clamp(0, top).to(torch.uint8)
    return Grid(codes.reshape(weight.shape), best_scale.squeeze(-1).to(scale_dtype), zero.squeeze(-1).to(torch.uint8))


def _safe(scale: Tensor) -> Tensor:
    """A scale that can be divided by: 1 where everything is 0 or underflowed."""
    return torch.where(scale.abs() > 0, scale, torch.ones_like(scale))


def pack_nibbles(codes: Tensor) -> Tensor:
    """(…, n) codes 0 … 15 as (…, ceil(n / 2)) bytes, the first code in the low half."""
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    low, high = codes[..., 0::2].to(torch.uint8), codes[..., 1::2].to(torch.uint8)
    return low | (high << 4)


def unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    """The inverse of ``pack_nibbles``: (…, m) bytes as (…, ``count``) codes."""
    pairs = torch.stack((packed & 15, packed >> 4), dim=-1)
    return pairs.flatten(-2)[..., :count]


def bits_per_weight(bits: int, group: int, scale_bits: int, zero_bits: int = 0) -> float:
    """Bits on disk for one weight: b + (scale + zero point) / g."""
    return bits + (scale_bits + zero_bits) / group


def activation_grid(x: Tensor, *, per_token: bool) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 codes of activations, with scale and zero point: ONNX's DynamicQuantizeLinear, whole or row by row.

    Args:
        x: (…, I) activations.
        per_token: one scale for each row of the last axis, else one for all.

    Returns:
        codes (…, I) in 0 … 255, scale and zero point (…, 1) or (1,); all in float. The range always holds 0, rounding
        is half to even.
    """
    if per_token:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    else:
        low, high = x.amin().reshape(1), x.amax().reshape(1)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = torch.round(-low / scale).clamp(0, 255)
    codes = (torch.round(x / scale) + zero).clamp(0, 255)
    return codes, scale, zero


def linear_oracle(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, *, per_token: bool) -> Tensor:
    """The integer linear map in float64, spelled out: quantize x, multiply integers, scale back, add the bias."""
    activation, step, zero = activation_grid(x.float(), per_token=per_token)
    products = (activation.double() - zero.double()) @ codes.double().T
    result = products * scale.double().reshape(-1) * step.double()
    return result if bias is None else result + bias.double()
