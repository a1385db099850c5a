"""Round to nearest: codes of 2 to 8 bits for a weight, with the scales that lose least.

Shapes: O rows, I columns, G groups of g columns each. A code q stands for s (q - z), q in 0 … 2^b - 1. The symmetric
grid has z = 2^(b-1), which isn't stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compresskit.numerics.grids import grouped

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55)
"""Shares of the full range that are tried: a clipped outlier may cost less than a coarse grid."""

REFITS = 2
_ROWS = 256
_SMALLEST_HALF = 6.2e-5
_LARGEST_HALF = 6.5e4


@dataclass(frozen=True)
class Codes:
    """A quantized matrix.

    Args:
        codes: (O, I) uint8, not packed.
        scale: (O, G) in the type in which it is stored; (1, 1) for a whole matrix. It may be negative.
        zero: (O, G) uint8, or float for a grid whose zero lies between codes; None: 2^(b-1) everywhere.
        bits: b.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int

    @property
    def whole(self) -> bool:
        """Whether one scale serves several rows."""
        return self.scale.shape[0] == 1 and self.codes.shape[0] > 1

    @property
    def group(self) -> int | None:
        """Columns that share a scale; None: all."""
        groups = self.scale.shape[1]
        return None if groups == 1 else self.codes.shape[1] // groups

    def values(self) -> Tensor:
        """What the codes stand for, (O, I) float32."""
        return dequantize(self.codes.float(), self.scale, self.zero, self.bits)


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """s (q - z) in float32 for float ``codes`` (…, I), ``scale`` and ``zero`` (…, G) or None."""
    parts = codes.unflatten(-1, (scale.shape[-1], -1))
    shift = 2.0 ** (bits - 1) if zero is None else zero.float().unsqueeze(-1)
    return ((parts - shift) * scale.float().unsqueeze(-1)).flatten(-2)


def quantize(
    weight: Tensor,
    bits: int,
    group: int | None = None,
    *,
    symmetric: bool = False,
    whole: bool = False,
    search: bool = True,
    importance: Tensor | None = None,
    scale_dtype: torch.dtype = torch.float32,
) -> Codes:
    """The nearest codes of ``weight`` (O, I), computed in float32.

    Args:
        bits: 2 to 8.
        group: columns that share a scale; None: a whole row. It must divide I.
        symmetric: no zero points.
        whole: one scale for the matrix; ``group`` must be None.
        search: choose the scale by its squared error: shares of the range, then least squares for fixed codes in turn.
            Without: the range itself, and no weight is further than |s| / 2 from its code.
        importance: weight (I,) of each column's squared error in the search; None: all alike.
        scale_dtype: in which the scale is stored; codes are chosen for the stored value.

    A group of zeros, or of one number, is represented exactly as far as ``scale_dtype`` goes.
    """
    wide = weight.detach().float().contiguous()
    parts = wide.reshape(1, 1, -1) if whole else grouped(wide, group)
    heavy = None if importance is None else _by_group(importance.float(), parts, weight.shape)
    codes = torch.empty_like(parts, dtype=torch.uint8)
    scale, zero = (parts.new_empty((*parts.shape[:2], 1)) for _ in range(2))
    for start in range(0, parts.shape[0], _ROWS):
        own = heavy if heavy is None or heavy.shape[0] == 1 else heavy[start : start + _ROWS]
        rows = slice(start, start + _ROWS)
        codes[rows], scale[rows], zero[rows] = _fit(parts[rows], bits, symmetric, search, own, scale_dtype)
    stored = None if symmetric else zero.squeeze(-1).to(torch.uint8)
    return Codes(codes.reshape(weight.shape), scale.squeeze(-1).to(scale_dtype), stored, bits)


def _by_group(importance: Tensor, parts: Tensor, shape: torch.Size) -> Tensor:
    """``importance`` (I,) in the shape of ``parts``, or one that broadcasts to it."""
    if parts.shape[-1] > shape[1]:
        return importance.expand(shape).reshape(1, 1, -1)
    return importance.reshape(1, -1, parts.shape[-1])


def scale_type(weight: Tensor, bits: int) -> torch.dtype:
    """float16 where the scales of ``weight`` keep their precision in it, else float32; float16 on the meta device."""
    if weight.device.type == "meta":
        return torch.float16
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    # Rows whose own range is far below the matrix's lose some digits; the bound is for the matrix.
    scale = 2 * largest / (2**bits - 1)
    return torch.float16 if scale / 16 >= _SMALLEST_HALF and 2 * largest < _LARGEST_HALF else torch.float32


def _fit(
    parts: Tensor, bits: int, symmetric: bool, search: bool, importance: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (…, g), scales and zero points (…, 1) of ``parts``, all float32."""
    top = 2**bits - 1
    (scale, zero), *others = _candidates(parts, bits, symmetric, search)
    scale = stored(scale, dtype)
    lowest = _error(parts, scale, zero, top, importance)
    for other, centre in others:
        other = stored(other, dtype)
        error = _error(parts, other, centre, top, importance)
        (scale, zero), lowest = _better((scale, zero), lowest, other, centre, error)
    for _ in range(REFITS if search else 0):
        steps = nearest(parts, scale, zero, top) - zero
        weighted = steps if importance is None else steps * importance
        fitted = (parts * weighted).sum(-1, keepdim=True) / (steps * weighted).sum(-1, keepdim=True).clamp(min=1e-20)
        fitted = stored(torch.where(fitted == 0, scale, fitted), dtype)
        error = _error(parts, fitted, zero, top, importance)
        (scale, zero), lowest = _better((scale, zero), lowest, fitted, zero, error)
    return nearest(parts, scale, zero, top), scale, zero


def _candidates(parts: Tensor, bits: int, symmetric: bool, search: bool) -> list[tuple[Tensor, Tensor]]:
    """Scales and zero points to try, the full range first."""
    half = 2 ** (bits - 1)
    low, high = parts.amin(-1, keepdim=True).clamp(max=0), parts.amax(-1, keepdim=True).clamp(min=0)
    shrinks = SHRINKS if search else (1.0,)
    if not symmetric:
        found = []
        for shrink in shrinks:
            scale = usable(shrink * (high - low) / (2**bits - 1))
            found.append((scale, torch.round(-shrink * low / scale).clamp(0, 2**bits - 1)))
        return found
    middle = torch.full_like(low, float(half))
    largest = torch.maximum(high, -low)
    plain = [(usable(shrink * largest / (half - 1)), middle) for shrink in shrinks]
    if not search:
        return plain
    # The code below all others has no counterpart above: give it to the side with the larger weight.
    sign = torch.where(high >= -low, -1.0, 1.0)
    return plain + [(usable(shrink * largest / half) * sign, middle) for shrink in shrinks]


def nearest(parts: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """The codes nearest to ``parts``, in float."""
    return (torch.round(parts / scale) + zero).clamp(0, top)


def _error(parts: Tensor, scale: Tensor, zero: Tensor, top: int, importance: Tensor | None) -> Tensor:
    squared = (parts - scale * (nearest(parts, scale, zero, top) - zero)).square()
    return (squared if importance is None else squared * importance).sum(-1, keepdim=True)


def _better(
    best: tuple[Tensor, Tensor], lowest: Tensor, scale: Tensor, zero: Tensor, error: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The better of two fits, group by group."""
    better = error < lowest
    return (torch.where(better, scale, best[0]), torch.where(better, zero, best[1])), torch.where(better, error, lowest)


def usable(scale: Tensor) -> Tensor:
    """A scale that can be divided by: 1 where all weights are 0 or the quotient is below the normal numbers."""
    return torch.where(scale.abs() >= torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))


def stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``scale`` as ``dtype`` will hold it, in float32: never 0, never infinite."""
    limit = torch.finfo(dtype)
    narrow = scale.clamp(-limit.max, limit.max).to(dtype).float()
    return torch.where(narrow == 0, torch.full_like(narrow, limit.tiny), narrow)


def quantize_oracle(weight: Tensor, bits: int, group: int, *, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """``quantize`` without a search, group by group in float64: codes (O, I), scales and zero points (O, G)."""
    top, half = 2**bits - 1, 2 ** (bits - 1)
    codes = torch.zeros(weight.shape, dtype=torch.float64)
    scales, zeros = torch.ones(2, weight.shape[0], weight.shape[1] // group, dtype=torch.float64)
    for row, values in enumerate(weight.double()):
        for number, part in enumerate(values.split(group)):
            low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
            span = max(high, -low) / (half - 1) if symmetric else (high - low) / top
            if span > 0:
                scales[row, number] = span
            zeros[row, number] = half if symmetric else round(-low / float(scales[row, number]))
            for offset, value in enumerate(part.tolist()):
                code = round(value / float(scales[row, number])) + int(zeros[row, number])
                codes[row, number * group + offset] = min(max(code, 0), top)
    return codes, scales, zeros
