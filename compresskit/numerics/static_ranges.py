"""Fixed ranges for 8-bit activations, and scales that move their outliers into the weights.

Shapes: N rows, I inputs, O outputs. A range (low, high) that holds 0 gives s = (high - low) / 255 and the zero point
z = round(-low / s); a value x has the code clamp(round(x / s) + z, 0, 255), as ONNX's QuantizeLinear defines it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RangeRule = Literal["minmax", "percentile", "mse", "entropy"]

LEVELS = 256
SHARES = tuple(1.0 - step / 20 for step in range(15))
"""Parts of the observed range that a search tries: 1.0, 0.95 … 0.3."""
_BINS = 2048
_SMALLEST = 1e-6


def affine(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of the range from ``low`` to ``high``, widened to hold 0; an empty one gets s = 1."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(torch.tensor((high - low) / (LEVELS - 1), dtype=torch.float32))
    if scale <= torch.finfo(torch.float32).tiny:
        return 1.0, 0
    return scale, round(-low / scale)


def codes(x: Tensor, scale: float | Tensor, zero: float | Tensor) -> Tensor:
    """Codes 0 … 255 of ``x``, as floats."""
    return torch.div(x, scale).round_().add_(zero).clamp_(0, LEVELS - 1)


def rounded(x: Tensor, scale: float, zero: int) -> Tensor:
    """``x`` as its codes stand for it."""
    return codes(x, scale, zero).sub_(zero).mul_(scale)


def observed_range(x: Tensor, rule: RangeRule = "minmax", share: float = 0.9999) -> tuple[float, float]:
    """(low, high) for the samples ``x`` (N, I).

    Args:
        rule: ``minmax`` all of it; ``percentile`` the middle ``share`` of the values; ``mse`` the part of the range
            whose rounding error is least (Banner et al. 2019 search it likewise); ``entropy`` the part whose 256 levels
            lose the least information, by Kullback-Leibler divergence of histograms (Migacz, GTC 2017).
    """
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    if rule == "minmax" or low == high:
        return low, high
    if rule == "percentile":
        return _percentiles(x, share)
    loss = _squared_error if rule == "mse" else _divergence
    best = min(SHARES, key=lambda part: loss(x, part * low, part * high))
    return best * low, best * high


def _percentiles(x: Tensor, share: float) -> tuple[float, float]:
    """torch.quantile is limited to 2^24 values; kthvalue is not."""
    values = x.flatten()
    outside = int((1 - share) / 2 * (values.numel() - 1))
    low = values.kthvalue(outside + 1).values
    high = values.kthvalue(values.numel() - outside).values
    return min(float(low), 0.0), max(float(high), 0.0)


def _squared_error(x: Tensor, low: float, high: float) -> float:
    return float((rounded(x, *affine(low, high)) - x).square().mean(dtype=torch.float64))


def _divergence(x: Tensor, low: float, high: float) -> float:
    """KL of the clipped histogram and of the same mass spread over 256 levels."""
    width = (high - low) / _BINS
    bins = ((x.flatten() - low) / width).long().clamp_(0, _BINS - 1)
    counts = torch.bincount(bins, minlength=_BINS).double()
    inside = (x.flatten() >= low) & (x.flatten() <= high)
    plain = torch.bincount(bins[inside], minlength=_BINS).double()
    levels = plain.reshape(LEVELS, -1)
    filled = levels > 0
    spread = torch.where(filled, levels.sum(1, keepdim=True) / filled.sum(1, keepdim=True).clamp(min=1), 0.0).flatten()
    p, q = counts / counts.sum(), spread / spread.sum()
    there = p > 0
    return float((p[there] * (p[there] / q[there].clamp(min=_SMALLEST / _BINS)).log()).sum())


def smoothing(activation_max: Tensor, weight_max: Tensor, alpha: float) -> Tensor:
    """s_j = max|x_j|^α / max|w_j|^(1-α), (I,): x_j / s_j is quantized, and w_j s_j (Xiao et al. 2023, eq. 4).

    Divided by their geometric mean, which changes no product; channels that are never used get 1.
    """
    used = (activation_max > 0) & (weight_max > 0)
    log = alpha * activation_max.clamp(min=_SMALLEST).log() - (1 - alpha) * weight_max.clamp(min=_SMALLEST).log()
    if not bool(used.any()):
        return torch.ones_like(activation_max)
    return torch.where(used, (log - log[used].mean()).exp(), 1.0)


def powers_of_two(scale: Tensor) -> Tensor:
    """The power of two nearest to each positive number, by their logarithms: multiplying by it rounds nothing."""
    mantissa, _ = torch.frexp(scale)
    above = scale / mantissa
    return torch.where(mantissa < 0.5**0.5, above / 2, above)


def squared_norm(values: Tensor) -> float:
    """‖values‖² of (N, O): a row is summed in its own type, the rows in float64."""
    return float(values.square().sum(-1).sum(dtype=torch.float64))


def relative_error(found: Tensor, exact: Tensor) -> float:
    """‖found - exact‖² / ‖exact‖² of (N, O)."""
    return squared_norm(found - exact) / (squared_norm(exact) or 1.0)
