"""HQQ: zero points that make large errors rarer, found without data by half-quadratic splitting.

Badri and Shaji, "Half-Quadratic Quantization", 2023. Minimised is Σ |w - s (q - z)|^p with p < 1, for which a few large
errors cost less than many small ones: weights are mostly small, and outliers are what ruins a least-squares fit.
Shapes: O rows, I columns, G groups of g columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compresskit.numerics.grids import grouped
from compresskit.numerics.rtn import Codes, quantize, usable

POWER = 0.7
STEPS = 20
_BETA, _GROWTH = 10.0, 1.01
_ROWS = 512


def hqq(
    weight: Tensor,
    bits: int,
    group: int | None = None,
    *,
    power: float = POWER,
    steps: int = STEPS,
    scale_dtype: torch.dtype = torch.float32,
) -> Codes:
    """Codes of ``weight`` (O, I) with zero points between codes, (O, G) in ``scale_dtype``.

    Starts from the group's range and from the scales of least squared error; of all that is met on the way, each group
    keeps what has the lowest objective. The scale stays: eq. 7 and 8 of the source, W_e = shrink(W - W_r), z = mean
    of q - (W - W_e) / s.

    Args:
        group: columns that share a scale; None: a whole row. It must divide I.
        power: p of the objective, 0 < p <= 1.
    """
    wide = weight.detach().float().contiguous()
    found = []
    for rows in wide.split(_ROWS):
        parts = grouped(rows, group)
        best: tuple[Tensor, Tensor, Tensor] | None = None
        for search in (False, True):
            start = quantize(rows, bits, group, search=search, scale_dtype=scale_dtype)
            zero = start.zero if start.zero is not None else torch.zeros_like(start.scale)
            fit = _refined(
                parts, start.scale.float()[..., None], zero.float()[..., None], bits, power, steps, scale_dtype
            )
            best = fit if best is None else _lower(best, fit)
        if best is not None:
            found.append((_coded(parts, best[0], best[1], 2**bits - 1), *best[:2]))
    codes, scale, zero = (torch.cat([each[index] for each in found]) for index in range(3))
    return Codes(
        codes.reshape(weight.shape).to(torch.uint8),
        scale.squeeze(-1).to(scale_dtype),
        zero.squeeze(-1).to(scale_dtype),
        bits,
    )


def _refined(
    parts: Tensor, scale: Tensor, zero: Tensor, bits: int, power: float, steps: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, zero point and objective (…, 1) of the best of ``steps`` half-quadratic steps from ``zero``."""
    top = 2**bits - 1
    scale = usable(scale)
    best = scale, zero, objective(parts, scale, zero, top, power)
    beta = _BETA
    for _ in range(steps):
        codes = _coded(parts, scale, zero, top)
        # The paper's steps are in units of weights of order 1: errors are measured in units of the scale here.
        outlying = shrink((parts / scale) - (codes - zero), beta, power)
        zero = (codes - (parts / scale - outlying)).mean(-1, keepdim=True).clamp(-top, 2 * top)
        zero = zero.to(dtype).float()
        beta *= _GROWTH
        best = _lower(best, (scale, zero, objective(parts, scale, zero, top, power)))
    return best


def _coded(parts: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """round(w / s + z) in the range of codes; z is no integer, so it is added before the rounding."""
    return torch.round(parts / scale + zero).clamp(0, top)


def shrink(error: Tensor, beta: float, power: float) -> Tensor:
    """The generalised soft threshold, sign(e) max(0, |e| - |e|^(p-1) / β): the proximal step for |e|^p."""
    size = error.abs().clamp(min=1e-8)
    return error.sign() * (size - size.pow(power - 1) / beta).clamp(min=0)


def objective(parts: Tensor, scale: Tensor, zero: Tensor, top: int, power: float) -> Tensor:
    """Σ |w - s (q - z)|^p of each group (…, 1)."""
    error = parts - scale * (_coded(parts, scale, zero, top) - zero)
    return error.abs().pow(power).sum(-1, keepdim=True)


def _lower(best: tuple[Tensor, Tensor, Tensor], other: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    better = other[2] < best[2]
    scale, zero, error = (torch.where(better, new, old) for new, old in zip(other, best, strict=True))
    return scale, zero, error


def hqq_oracle(values: list[float], scale: float, zero: float, bits: int, power: float, steps: int) -> float:
    """The lowest objective of one group over ``steps`` from one start, number by number."""
    top, beta = 2**bits - 1, _BETA

    def coded(z: float) -> list[int]:
        return [min(max(round(value / scale + z), 0), top) for value in values]

    def total(z: float) -> float:
        codes = coded(z)
        return float(sum(abs(value - scale * (code - z)) ** power for value, code in zip(values, codes, strict=True)))

    lowest = total(zero)
    for _ in range(steps):
        centres = []
        for value, code in zip(values, coded(zero), strict=True):
            error = value / scale - (code - zero)
            size = max(abs(error), 1e-8)
            outlying = max(0.0, size - size ** (power - 1) / beta) * (1 if error > 0 else -1 if error < 0 else 0)
            centres.append(code - (value / scale - outlying))
        zero = min(max(sum(centres) / len(centres), -top), 2 * top)
        beta *= _GROWTH
        lowest = min(lowest, total(zero))
    return lowest
