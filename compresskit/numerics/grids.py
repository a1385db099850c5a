"""Quantization grids of weights: codes, scales, zero points, packing.

Shapes: O rows, I columns, G groups of g columns each. A *grid* maps w to the code round(w / s) + z, kept in a range of
2^b integers; back it gives s (q - z). Where the range holds w, the error is at most s / 2. Rounding is half to even.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

REFINEMENTS = 3
# Rows that are fitted at once: their temporaries then stay in the processor's cache.
_ROWS = 1024


@dataclass(frozen=True)
class Grid:
    """Codes (O, I) with their scales (O, G) and zero points (O, G); ``zero`` None stands for 0.

    One scale for the whole matrix is (1, 1).
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    def values(self) -> Tensor:
        """What the codes stand for, (O, I), in float32 or wider."""
        scale = self.scale.to(torch.promote_types(self.scale.dtype, torch.float32))
        codes = self.codes.reshape(self.codes.shape[0], scale.shape[1], -1).to(scale.dtype)
        if self.zero is not None:
            codes = codes - self.zero.unsqueeze(-1).to(scale.dtype)
        return (codes * scale.unsqueeze(-1)).reshape(self.codes.shape)


def grouped(weight: Tensor, group: int | None) -> Tensor:
    """``weight`` (O, I) as (O, G, g); ``group`` None is one group a row."""
    size = weight.shape[1] if group is None else group
    return weight.reshape(weight.shape[0], -1, size)


def symmetric(weight: Tensor, bits: int, group: int | None = None, *, whole: bool = False) -> Grid:
    """Codes in -(2^(b-1) - 1) … 2^(b-1) - 1 with s = max|w| / (2^(b-1) - 1); int8 codes, float32 scales.

    Args:
        weight: (O, I); (any float type, computed in float32).
        group: columns that share a scale; None is a whole row. It must divide I.
        whole: one scale for the matrix instead.

    A group of zeros gets s = 1, so that nothing is ever divided by 0.
    """
    parts = grouped(weight.float().contiguous(), group)
    top = 2 ** (bits - 1) - 1
    if whole:
        scale = _divisor(parts.abs().amax((0, 1, 2), keepdim=True) / top)
        return Grid(_nearest(parts, scale, top).reshape(weight.shape), scale.squeeze(-1), None)
    # Written where they stay: pieces that are joined at the end would leave memory in shreds, and take it twice.
    codes, scales = torch.empty_like(parts, dtype=torch.int8), parts.new_empty((*parts.shape[:2], 1))
    for start in range(0, len(parts), _ROWS):
        some = parts[start : start + _ROWS]
        scale = _divisor(some.abs().amax(-1, keepdim=True) / top)
        codes[start : start + _ROWS], scales[start : start + _ROWS] = _nearest(some, scale, top), scale
    return Grid(codes.reshape(weight.shape), scales.squeeze(-1), None)


def _nearest(parts: Tensor, scale: Tensor, top: int) -> Tensor:
    return torch.round(parts / scale).clamp(-top, top).to(torch.int8)


def asymmetric(
    weight: Tensor,
    bits: int,
    group: int | None = None,
    *,
    scale_dtype: torch.dtype = torch.float32,
    least_squares: bool = True,
) -> Grid:
    """Codes in 0 … 2^b - 1 with a zero point per group; uint8 codes and zero points.

    The range runs from min(w, 0) to max(w, 0), so that 0 is exact. With ``least_squares``, codes and scale are then
    improved in turn: for fixed codes s = <w, q - z> / |q - z|² is optimal; the fit of lowest squared error is kept,
    never a worse one than the range's own. It may clip an end of the range, so s / 2 bounds the error only without it.

    Args:
        weight: (O, I); (any float type, computed in float32).
        group: columns that share a scale; None is a whole row. It must divide I.
        scale_dtype: the scales are rounded to it before the codes are chosen: what is stored is what was fitted.
    """
    parts = grouped(weight.float().contiguous(), group)
    codes, zero = (
        torch.empty(*parts.shape[:2], last, dtype=torch.uint8, device=parts.device) for last in (parts.shape[2], 1)
    )
    scale = parts.new_empty((*parts.shape[:2], 1), dtype=scale_dtype)
    for start in range(0, len(parts), _ROWS):
        rows = slice(start, start + _ROWS)
        codes[rows], scale[rows], zero[rows] = _fit_asymmetric(
            parts[rows], 2**bits - 1, scale_dtype, REFINEMENTS if least_squares else 0
        )
    return Grid(codes.reshape(weight.shape), scale.squeeze(-1), zero.squeeze(-1))


def _fit_asymmetric(
    parts: Tensor, top: int, scale_dtype: torch.dtype, refinements: int
) -> tuple[Tensor, Tensor, Tensor]:
    low = parts.amin(-1, keepdim=True).clamp(max=0)
    high = parts.amax(-1, keepdim=True).clamp(min=0)
    scale = _divisor(_stored((high - low) / top, scale_dtype, upwards=True))
    zero = torch.round(-low / scale).clamp(0, top)
    best, best_error = scale, _squared_error(parts, _steps(parts, scale, zero, top), scale)
    for _ in range(refinements):
        steps = _steps(parts, scale, zero, top)
        fitted = (parts * steps).sum(-1, keepdim=True) / steps.square().sum(-1, keepdim=True).clamp(min=1e-12)
        scale = _divisor(_stored(fitted, scale_dtype))
        error = _squared_error(parts, _steps(parts, scale, zero, top), scale)
        better = error < best_error
        best, best_error = torch.where(better, scale, best), torch.where(better, error, best_error)
    codes = _steps(parts, best, zero, top) + zero
    return codes.to(torch.uint8), best.to(scale_dtype), zero.to(torch.uint8)


def _steps(parts: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """q - z for each weight."""
    return (torch.round(parts / scale) + zero).clamp(0, top) - zero


def _squared_error(parts: Tensor, steps: Tensor, scale: Tensor) -> Tensor:
    return (parts - scale * steps).square().sum(-1, keepdim=True)


def _stored(scale: Tensor, dtype: torch.dtype, *, upwards: bool = False) -> Tensor:
    """``scale`` as ``dtype`` will hold it, in float32; ``upwards``: never smaller, so that the range still fits."""
    narrow = scale.to(dtype)
    if upwards and dtype.itemsize == 2:
        # The bits of positive numbers, read as integers, are in the numbers' order.
        above = (narrow.view(torch.int16) + 1).view(dtype)
        narrow = torch.where(narrow.float() < scale, above, narrow)
    return narrow.float()


def _divisor(scale: Tensor) -> Tensor:
    """A scale that can be divided by: 1 where everything is 0 or the quotient fell below the smallest normal number."""
    return torch.where(scale.abs() >= torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))


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


def symmetric_oracle(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """``symmetric``, one group after another in float64: codes (O, I) and scales (O, G)."""
    top = 2 ** (bits - 1) - 1
    codes = torch.zeros(weight.shape, dtype=torch.float64)
    scales = torch.ones(weight.shape[0], weight.shape[1] // group, dtype=torch.float64)
    for row, values in enumerate(weight.double()):
        for number, part in enumerate(values.split(group)):
            if part.abs().max() > 0:
                scales[row, number] = part.abs().max() / top
            codes[row, number * group : (number + 1) * group] = torch.round(part / scales[row, number])
    return codes, scales


def asymmetric_oracle(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """``asymmetric`` without least squares, one group after another in float64: codes, scales, zero points."""
    top = 2**bits - 1
    codes = torch.zeros(weight.shape, dtype=torch.float64)
    scales, zeros = torch.ones(2, weight.shape[0], weight.shape[1] // group, dtype=torch.float64)
    for row, values in enumerate(weight.double()):
        for number, part in enumerate(values.split(group)):
            low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
            if high > low:
                scales[row, number] = (high - low) / top
            zeros[row, number] = round(-low / float(scales[row, number]))
            column = number * group
            for offset, value in enumerate(part.tolist()):
                code = round(value / float(scales[row, number])) + int(zeros[row, number])
                codes[row, column + offset] = min(max(code, 0), top)
    return codes, scales, zeros
