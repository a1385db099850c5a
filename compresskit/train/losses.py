"""Distillation losses on tensors; ``numerics.distillation`` holds the plain loops that they are tested against.

Shapes: N rows (attended positions, or texts), V classes, D features. T is the temperature. All are computed in float32
at least, whatever the models' type.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def response_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · mean over rows of KL(softmax(t/T) ‖ softmax(s/T)), for logits (N, V) (Hinton et al. 2015)."""
    log_p = (_wide(teacher) / temperature).log_softmax(-1)
    log_q = (_wide(student) / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def binary_logits(logits: Tensor) -> Tensor:
    """Each class of logits (N, C) as a distribution of its own, yes or no: (N · C, 2)."""
    wide = _wide(logits)
    return torch.stack([wide, torch.zeros_like(wide)], -1).flatten(0, -2)


def binary_response_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """As ``response_loss`` where each class is a decision of its own: summed over classes, for logits (N, V)."""
    return response_loss(binary_logits(student), binary_logits(teacher), temperature) * student.shape[-1]


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of 1 - cos(s, t), for embeddings (N, D)."""
    return 1 - F.cosine_similarity(_wide(student), _wide(teacher), dim=-1).mean()


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square of the difference between cosines within the batch, s_i·s_j and t_i·t_j, for embeddings (N, D).

    The embeddings may be of different sizes (Tung and Mori 2019, arXiv 1907.09682, with cosines). In bfloat16 the
    differences would drown in rounding: autocast is left out here.
    """
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = (F.normalize(_wide(vectors), dim=-1) for vectors in (student, teacher))
        return (ours @ ours.T - theirs @ theirs.T).square().mean()


def hidden_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ ‖s - t‖² / Σ ‖t‖² over rows, for hidden states (N, D)."""
    student, teacher = _wide(student), _wide(teacher)
    return (student - teacher).square().sum() / teacher.square().sum()
