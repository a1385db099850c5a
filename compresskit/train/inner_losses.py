"""Losses between the insides of two Transformers; ``numerics.hidden_states`` holds the loops they are tested against.

Shapes: B texts, T tokens, N attended tokens, D features, W width of queries (or keys, values), H heads. Computed in
float32 at least.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from compresskit.train.losses import hidden_loss

StateLoss = Literal["mse", "unit", "relative"]
Pair = tuple[Tensor, Tensor]


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def state_loss(student: Tensor, teacher: Tensor, kind: StateLoss = "mse") -> Tensor:
    """Between states (N, D): mean square, mean square distance of unit vectors, or share of energy that is missed."""
    student, teacher = _wide(student), _wide(teacher)
    if kind == "relative":
        return hidden_loss(student, teacher)
    if kind == "unit":
        return (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum(-1).mean()
    return F.mse_loss(student, teacher)


def head_scores(left: Tensor, right: Tensor, heads: int) -> Tensor:
    """A_h Bᵀ_h / √(W / H), (B, H, T, T), for vectors (B, T, W) that are cut into H pieces."""
    a, b = (_wide(x).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (left, right))
    return a @ b.transpose(-1, -2) / math.sqrt(a.shape[-1])


def seen_pairs(mask: Tensor, *, causal: bool) -> Tensor:
    """(B, 1, T, T) bool: which column each row sees; none of a padded row's, none that is padding or yet to come."""
    pairs = mask[:, None, :, None] & mask[:, None, None, :]
    return pairs.tril() if causal else pairs


def relation_loss(student: Pair, teacher: Pair, heads: int, mask: Tensor, *, causal: bool = False) -> Tensor:
    """Mean over heads and attended rows of KL(softmax(teacher's row) ‖ softmax(student's row)) of ``head_scores``.

    Each side is a pair of (B, T, W), ``mask`` (B, T) bool; the widths of the sides may differ (Wang et al. 2021).
    """
    allowed = seen_pairs(mask, causal=causal)
    hidden = ~allowed & mask[:, None, :, None]  # a padded row is left whole, for its softmax to stay finite
    log_p, log_q = (
        head_scores(*pair, heads).masked_fill(hidden, -torch.inf).log_softmax(-1) for pair in (teacher, student)
    )
    difference = (log_p - log_q).masked_fill(~allowed, 0.0)
    return (log_p.exp() * difference).sum() / (heads * mask.sum())


def score_loss(student: Pair, teacher: Pair, heads: int, mask: Tensor, *, causal: bool = False) -> Tensor:
    """Mean of the squared difference of ``head_scores`` over what each row sees (Jiao et al. 2020, eq. 7)."""
    allowed = seen_pairs(mask, causal=causal)
    missed = (head_scores(*student, heads) - head_scores(*teacher, heads)).square().masked_fill(~allowed, 0.0)
    return missed.sum() / (heads * allowed.sum())
