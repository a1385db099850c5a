"""The loss of distillation with a temperature for each instance.

Shapes: N instances, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from compresskit.numerics.fusion import wide


def dynamic_loss(
    student: Tensor,
    targets: Tensor,
    labels: Tensor | None,
    teacher_temperature: Tensor,
    student_temperature: Tensor,
    alpha: float = 0.8,
    *,
    squared: bool = False,
    whole: Tensor | None = None,
) -> Tensor:
    """Mean over rows of (1 - alpha) · CE(y, softmax(s)) + alpha · scale · KL(softmax(z'/T_t) ‖ softmax(s/T_s)).

    MiDTD (Li et al. 2022), where the soft term is a cross entropy: it differs from KL by a number that has no gradient.

    Args:
        student: logits, (N, C).
        targets: the teacher's fused logits z', (N, C).
        labels: (N,) int64; None only where alpha is 1.
        teacher_temperature: (N,); ``student_temperature`` too.
        alpha: the paper's alpha, weight of the SOFT term.
        squared: scale = T_t · T_s (Hinton's T² where both are equal); else 1 (the paper).
        whole: logits of all classes for the labels, where ``student`` and ``targets`` are of fewer.

    Raises:
        ValueError: labels are missing though alpha is below 1.
    """
    ours, theirs = wide(student), wide(targets)
    loss = ours.new_zeros(())
    if alpha > 0:
        log_p = (theirs / teacher_temperature.to(theirs).unsqueeze(-1)).log_softmax(-1)
        log_q = (ours / student_temperature.to(ours).unsqueeze(-1)).log_softmax(-1)
        rows = F.kl_div(log_q, log_p, reduction="none", log_target=True)
        rows = torch.where(log_p.exp() > 0, rows, torch.zeros_like(rows)).sum(-1)
        if squared:
            rows = rows * (teacher_temperature * student_temperature).to(rows)
        loss = loss + alpha * rows.mean()
    if alpha < 1:
        if labels is None:
            raise ValueError("alpha below 1 needs labels")
        loss = loss + (1 - alpha) * F.cross_entropy(ours if whole is None else wide(whole), labels)
    return loss
