"""GPTQ: columns are rounded one by one, and what each loses is made up for by those that follow.

Frantar et al. 2023 (arXiv 2210.17323). Shapes: W (O, I), the inputs' second moments H = Σ x xᵀ (I, I).
"""

from __future__ import annotations

import torch
from torch import Tensor

from compresskit.numerics.finite import all_finite
from compresskit.numerics.rtn import Codes, nearest, quantize

DAMPING = 0.01
"""Default damping in units of the mean of H's diagonal."""

RETRIES = 8
BLOCK = 128
"""Columns after which the rest of the matrix is brought up to date, in one product."""


def gptq(
    weight: Tensor,
    gram: Tensor,
    bits: int,
    group: int | None = None,
    *,
    symmetric: bool = False,
    damping: float = DAMPING,
    act_order: bool = True,
    block: int = BLOCK,
    scale_dtype: torch.dtype = torch.float32,
) -> Codes:
    """Codes of ``weight`` (O, I) that keep W x, for the inputs that ``gram`` tells of.

    With H = (F + 1) D (F + 1)ᵀ, F strictly upper triangular, column k is rounded when Σ_j<k (w_j - q_j) F_jk has been
    added to it. That is eq. 2 and 3 of the paper, which need the Cholesky factor of H⁻¹, without an inverse: QuIP
    (Chee et al. 2023, arXiv 2307.13304), theorem 6. The scales of all groups are chosen before, weighted by H's
    diagonal, so that the order of rounding doesn't change which columns share one.

    Args:
        gram: Σ x xᵀ, any multiple of it.
        damping: share of the mean diagonal that is added to it; raised tenfold while H can't be inverted.
        act_order: round the columns with the largest inputs first.
        block: columns at a time between updates of the rest; it changes the time only.

    Inputs that are always 0 have their weights rounded to nearest: nothing is known of them.

    Raises:
        torch.linalg.LinAlgError: if ``gram`` isn't finite, or can't be inverted however damped.
    """
    moments = gram.double().to(weight.device)
    if not all_finite(moments):
        raise torch.linalg.LinAlgError("the second moments of the inputs aren't finite")
    importance = moments.diagonal().clamp(min=0)
    start = quantize(
        weight,
        bits,
        group,
        symmetric=symmetric,
        importance=_relative(importance),
        scale_dtype=scale_dtype,
    )
    zero = torch.full_like(start.scale, 2.0 ** (bits - 1)) if start.zero is None else start.zero
    codes = gptq_codes(
        weight, moments, start.scale, zero, 0, 2**bits - 1, damping=damping, act_order=act_order, block=block
    )
    return Codes(codes.to(torch.uint8), start.scale, start.zero, bits)


def gptq_codes(
    weight: Tensor,
    gram: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    low: int,
    high: int,
    *,
    damping: float = DAMPING,
    act_order: bool = True,
    block: int = BLOCK,
) -> Tensor:
    """Codes ``low`` … ``high`` (O, I), in float32, of ``weight`` for given scales; see ``gptq``.

    Args:
        scale, zero: (O, G); ``zero`` None: 0.
    """
    moments = gram.double().to(weight.device)
    if not all_finite(moments):
        raise torch.linalg.LinAlgError("the second moments of the inputs aren't finite")
    diagonal = moments.diagonal()
    order = diagonal.argsort(descending=True, stable=True) if act_order else torch.arange(len(diagonal))
    order = order.to(weight.device)
    shares = feedback(moments, damping, order).to(torch.float32)
    columns = weight.detach().float().T[order].contiguous()
    groups = (order // (weight.shape[1] // scale.shape[1])).cpu().tolist()
    wide = scale.float().T
    centre = torch.zeros_like(wide) if zero is None else zero.float().T
    codes = _round_columns(columns, shares, wide, centre, groups, (low, high), block)
    found = torch.empty_like(codes)
    found[order] = codes
    return found.T.contiguous()


def _relative(importance: Tensor) -> Tensor:
    """``importance`` with mean 1 and nothing at 0: a column that is never seen still gets a scale that holds it."""
    mean = importance.mean()
    return importance / mean + 1e-4 if mean > 0 else torch.ones_like(importance)


def _round_columns(
    columns: Tensor, shares: Tensor, scale: Tensor, zero: Tensor, groups: list[int], ends: tuple[int, int], block: int
) -> Tensor:
    """Codes (I, O) of ``columns`` (I, O); ``shares`` F, scales and zero points (G, O), one a column's group."""
    count = columns.shape[0]
    codes, losses = torch.empty_like(columns), torch.empty_like(columns)
    for begin in range(0, count, block):
        end = min(begin + block, count)
        wanted = torch.addmm(columns[begin:end], shares[:begin, begin:end].T, losses[:begin])
        for number, place in enumerate(range(begin, end)):
            own, centre = scale[groups[place]], zero[groups[place]]
            target = torch.addmv(wanted[number], losses[begin:place].T, shares[begin:place, place])
            code = codes[place] = target.div_(own).round_().add_(centre).clamp_(*ends)
            losses[place] = columns[place] - own * (code - centre)
    return codes


def feedback(moments: Tensor, damping: float, order: Tensor | None = None) -> Tensor:
    """Strictly upper F with (F + 1) D (F + 1)ᵀ = H + λ I, D diagonal; float64.

    Inputs that never occur count as independent. It takes the memory of two matrices like H besides H.

    Args:
        order: of the rows and columns of H; by default as they are.

    Raises:
        torch.linalg.LinAlgError: see ``gptq``.
    """
    diagonal = (moments.diagonal() if order is None else moments.diagonal()[order]).clone()
    mean = float(diagonal.mean())
    diagonal[diagonal <= 0] = mean if mean > 0 else 1.0
    backwards = torch.arange(len(diagonal), device=moments.device) if order is None else order
    backwards = backwards.flip(0)
    level, failed = damping, torch.empty(0, dtype=torch.int32, device=moments.device)
    for _ in range(RETRIES):
        work = moments[backwards[:, None], backwards]
        work.diagonal().copy_((diagonal + level * max(mean, 1e-300)).flip(0))
        failed = torch.linalg.cholesky_ex(work, out=(work, failed))[1]
        if int(failed) == 0 and all_finite(work):
            # The lower factor of the matrix read from its end is the upper factor of the matrix.
            work = work.div_(work.diagonal().clone()).flip(0, 1)
            work.diagonal().zero_()
            return work
        level = max(10 * level, 1e-6)
    raise torch.linalg.LinAlgError("the second moments of the inputs can't be inverted, however damped")


def output_error(change: Tensor, gram: Tensor) -> float:
    """Σ |ΔW x|² over the inputs that ``gram`` Σ x xᵀ tells of, for ``change`` ΔW (O, I)."""
    wide = change.double()
    return float(((wide @ gram.double().to(wide.device)) * wide).sum())


def gptq_oracle(weight: Tensor, gram: Tensor, start: Codes, order: list[int], damping: float) -> Tensor:
    """``gptq``'s values (O, I) for the scales of ``start``, in float64: H⁻¹ of the rest is inverted at every column."""
    top, size = 2**start.bits - 1, weight.shape[1] // start.scale.shape[1]
    moments = gram.double()
    moments = moments + damping * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64)
    work, rest = weight.double().clone(), list(order)
    found = torch.zeros_like(work)
    for column in order:
        scale = start.scale[:, column // size].double()
        half = torch.full_like(scale, 2.0 ** (start.bits - 1))
        zero = half if start.zero is None else start.zero[:, column // size].double()
        found[:, column] = scale * (nearest(work[:, column], scale, zero, top) - zero)
        inverse = torch.linalg.inv(moments[rest][:, rest])
        loss = (work[:, column] - found[:, column]) / inverse[0, 0]
        work[:, rest] -= loss[:, None] * inverse[0]
        rest = rest[1:]
    return found
