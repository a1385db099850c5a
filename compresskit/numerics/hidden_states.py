"""Losses between the insides of two Transformers, in plain float64 loops: what ``train.inner_losses`` computes fast.

Shapes: N tokens, D features, T tokens of one text, W width of queries (or keys, values), H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compresskit.numerics.distillation import softmax


def mean_square_loss(student: Tensor, teacher: Tensor) -> float:
    """Mean of (s - t)² over tokens and features, for states (N, D) (Romero et al. 2015, eq. 3)."""
    pairs = zip(student.double().flatten().tolist(), teacher.double().flatten().tolist(), strict=True)
    return sum((s - t) ** 2 for s, t in pairs) / student.numel()


def unit_loss(student: Tensor, teacher: Tensor) -> float:
    """Mean over tokens of ‖s / ‖s‖ - t / ‖t‖‖², for states (N, D) (Sun et al. 2019, "PKD", eq. 7)."""
    total = 0.0
    for s, t in zip(student.double(), teacher.double(), strict=True):
        total += float(((s / s.norm() - t / t.norm()) ** 2).sum())
    return total / student.shape[0]


def head_scores(left: Tensor, right: Tensor, heads: int) -> Tensor:
    """A_h Bᵀ_h / √(W / H) of one text, (H, T, T), for vectors (T, W) that are cut into H pieces."""
    size = left.shape[1] // heads
    pieces = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        pieces.append(left[:, part].double() @ right[:, part].double().T / math.sqrt(size))
    return torch.stack(pieces)


def relation_loss(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], heads: int, *, causal: bool = False
) -> float:
    """Mean over heads and rows of KL(softmax(teacher's row) ‖ softmax(student's row)) of ``head_scores``.

    Each side is a pair of (T, W); the widths of the sides may differ (Wang et al. 2021, "MiniLMv2", eq. 5-6). With
    ``causal``, row i ends at i.
    """
    ours, theirs = head_scores(*student, heads), head_scores(*teacher, heads)
    total, tokens = 0.0, ours.shape[1]
    for head in range(heads):
        for row in range(tokens):
            end = row + 1 if causal else tokens
            p, q = softmax(theirs[head, row, :end]).tolist(), softmax(ours[head, row, :end]).tolist()
            total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)
    return total / (heads * tokens)


def score_loss(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], heads: int, *, causal: bool = False
) -> float:
    """Mean of the squared difference of ``head_scores`` (Jiao et al. 2020, "TinyBERT", eq. 7); not over the future."""
    ours, theirs = head_scores(*student, heads), head_scores(*teacher, heads)
    total, count = 0.0, 0
    for head in range(heads):
        for row in range(ours.shape[1]):
            for column in range(row + 1 if causal else ours.shape[2]):
                total += float(ours[head, row, column] - theirs[head, row, column]) ** 2
                count += 1
    return total / count
