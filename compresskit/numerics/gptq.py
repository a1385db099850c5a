"""GPTQ: rounding a matrix column by column, the columns to come making up for the error of those before.

Frantar et al., GPTQ, ICLR 2023 (arXiv 2210.17323). Shapes: O outputs, I inputs, G groups of columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 128
"""Columns after which the error is spread over the rest of the matrix (there, section 3.3)."""


def gptq_codes(
    weight: Tensor,
    gram: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    lowest: int,
    highest: int,
    *,
    damping: float = 0.01,
    act_order: bool = True,
) -> Tensor:
    """Codes (O, I) of ``weight`` on the grid of ``scale`` and ``zero``, for inputs with Σ x xᵀ = ``gram`` (I, I).

    Args:
        scale, zero: (O, G) of the unrounded weights, groups being equal runs of columns; ``zero`` None stands for 0.
        lowest, highest: the smallest and the largest code.
        damping: share of the mean of the diagonal that is added to it.
        act_order: columns of large inputs first, while many others can still make up for them.

    Columns whose input is always 0 are rounded to the nearest code. Returned as float32, whole numbers.
    """
    columns = weight.shape[1]
    size = columns // scale.shape[1]
    diagonal = gram.diagonal()
    order = diagonal.argsort(descending=True, stable=True) if act_order else torch.arange(columns, device=weight.device)
    dead = diagonal <= 0
    curvature = gram.double().clone()
    curvature[dead, dead] = 1.0
    factor = _factor(curvature[order][:, order], damping).to(weight.device)
    rest = weight.detach().float()[:, order].clone()
    groups = order // size
    steps = scale.float()[:, groups]
    offsets = torch.zeros_like(steps) if zero is None else zero.float()[:, groups]
    codes = torch.empty_like(rest)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = torch.empty(rest.shape[0], stop - start, device=rest.device)
        for column in range(start, stop):
            step, offset = steps[:, column], offsets[:, column]
            code = (rest[:, column] / step).round_().add_(offset).clamp_(lowest, highest)
            codes[:, column] = code
            error = (rest[:, column] - (code - offset) * step) / factor[column, column]
            rest[:, column:stop] -= error[:, None] * factor[column, column:stop]
            errors[:, column - start] = error
        rest[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes[:, order.argsort()]


def _factor(curvature: Tensor, damping: float) -> Tensor:
    """U, upper triangular with Uᵀ U = (H + λ mean(diag H))⁻¹, in float32."""
    size = curvature.shape[0]
    identity = torch.eye(size, dtype=curvature.dtype, device=curvature.device)
    lower = torch.linalg.cholesky(curvature + damping * curvature.diagonal().mean() * identity)
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()


def gptq_oracle(weight: Tensor, gram: Tensor, scale: Tensor, lowest: int, highest: int, damping: float) -> Tensor:
    """The same by its definition: after each column, the exact update of all others by the inverse of what is left.

    One scale a row, columns in their order, float64 (eq. 2 and 3 of the paper).
    """
    rest = weight.double().clone()
    curvature = gram.double() + damping * gram.double().diagonal().mean() * torch.eye(gram.shape[0], dtype=torch.double)
    step = scale.double().reshape(-1)
    codes = torch.zeros_like(rest)
    for column in range(rest.shape[1]):
        inverse = torch.linalg.inv(curvature[column:, column:])
        codes[:, column] = (rest[:, column] / step).round().clamp(lowest, highest)
        error = (rest[:, column] - codes[:, column] * step) / inverse[0, 0]
        rest[:, column:] -= error[:, None] * inverse[0]
    return codes
