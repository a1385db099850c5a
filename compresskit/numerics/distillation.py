"""Distillation losses, row by row in float64: what ``train.losses`` computes fast.

Shapes: N rows (attended positions, or texts), V classes, D features. T is the temperature.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def softmax(row: Tensor, temperature: float = 1.0) -> Tensor:
    """softmax(z / T) of one row of logits (V,)."""
    scaled = row.double() / temperature
    powers = (scaled - scaled.max()).exp()
    return powers / powers.sum()


def response_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> float:
    """T² · mean over rows of KL(softmax(t/T) ‖ softmax(s/T)), for logits (N, V) (Hinton et al. 2015, eq. 2-4).

    The factor T² keeps the gradient's size as T grows: it tends to (s - t) / V for centred logits.
    """
    total = 0.0
    for z_s, z_t in zip(student, teacher, strict=True):
        p, q = softmax(z_t, temperature), softmax(z_s, temperature)
        total += sum(float(a) * (math.log(float(a)) - math.log(float(b))) for a, b in zip(p, q, strict=True) if a > 0)
    return temperature**2 * total / student.shape[0]


def cosine_loss(student: Tensor, teacher: Tensor) -> float:
    """Mean over rows of 1 - cos(s, t), for embeddings (N, D)."""
    total = 0.0
    for s, t in zip(student.double(), teacher.double(), strict=True):
        total += 1 - float(s @ t / (s.norm() * t.norm()))
    return total / student.shape[0]


def hidden_loss(student: Tensor, teacher: Tensor) -> float:
    """Σ ‖s - t‖² / Σ ‖t‖² over rows, for hidden states (N, D): the share of the teacher's energy that is missed."""
    missed = sum(float(((s - t) ** 2).sum()) for s, t in zip(student.double(), teacher.double(), strict=True))
    return missed / sum(float((t**2).sum()) for t in teacher.double())


def similarity_loss(student: Tensor, teacher: Tensor) -> float:
    """Mean over pairs of texts of (cos(s_i, s_j) - cos(t_i, t_j))², for embeddings (N, D) (Park et al. 2019)."""
    rows = student.shape[0]
    total = 0.0
    for i in range(rows):
        for j in range(rows):
            cosines = [float(x[i] @ x[j] / (x[i].norm() * x[j].norm())) for x in (student.double(), teacher.double())]
            total += (cosines[0] - cosines[1]) ** 2
    return total / rows**2


def response_gradient(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The gradient of ``response_loss`` by the student's logits, (N, V): T (softmax(s/T) - softmax(t/T)) / N."""
    rows = [
        temperature * (softmax(z_s, temperature) - softmax(z_t, temperature))
        for z_s, z_t in zip(student, teacher, strict=True)
    ]
    return torch.stack(rows) / student.shape[0]
