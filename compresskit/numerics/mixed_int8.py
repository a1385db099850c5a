"""LLM.int8(): products of int8 codes, but for the columns of inputs that hold an outlier (arXiv 2208.07339, §3.2).

Shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compresskit.numerics.integer import TINY, integer_matmul


def outlier_columns(x: Tensor, threshold: float) -> Tensor:
    """Which columns (I,) of ``x`` (N, I) hold a magnitude of at least ``threshold``; none for a threshold of 0."""
    if threshold <= 0:
        return torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    return (x.abs() >= threshold).any(0)


def linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    """y = x Wᵀ + b, (N, O) float32, from float32 ``x`` (N, I), int8 ``codes`` (O, I), their scales (O,), b (O,).

    Rows of ``x``, outlier columns left out, are rounded to int8 by their largest magnitude; outlier columns are
    multiplied as floats.
    """
    held = outlier_columns(x, threshold)
    rest = torch.where(held, torch.zeros_like(x), x)
    step = (rest.abs().amax(1, keepdim=True) / 127).clamp(min=TINY) if x.shape[0] else x.new_ones(0, 1)
    products = integer_matmul(torch.round(rest / step).clamp(-127, 127).to(torch.int8), codes)
    result = products.float() * scale * step
    if bool(held.any()):
        result = result + x[:, held] @ (codes[:, held].float() * scale[:, None]).T
    return result if bias is None else result + bias.float()


def linear_oracle(x: Tensor, codes: Tensor, scale: Tensor, threshold: float) -> Tensor:
    """``linear`` without a bias in float64, number by number: (N, O)."""
    held = [bool(threshold > 0 and (column.abs() >= threshold).any()) for column in x.T]
    result = torch.zeros(x.shape[0], codes.shape[0], dtype=torch.float64)
    for number, row in enumerate(x.double().tolist()):
        largest = max((abs(value) for value, out in zip(row, held, strict=True) if not out), default=0.0)
        step = largest / 127 or 1.0
        for output, weights in enumerate(codes.tolist()):
            total = 0.0
            for value, weight, out in zip(row, weights, held, strict=True):
                total += weight * (value if out else round(value / step) * step)
            result[number, output] = total * float(scale[output])
    return result
