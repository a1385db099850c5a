"""The loss of MiDTD: three cases by hand, its limits, and where its gradient vanishes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from compresskit.numerics.dynamic_distillation import dynamic_loss

LN2, LN3 = math.log(2.0), math.log(3.0)


def kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


CASES = [
    # At T = 1 the target is (3/4, 1/4) and the student (1/2, 1/2).
    ([[LN3, 0.0]], [[0.0, 0.0]], [0], [1.0], [1.0], 0.8, False, 0.2 * LN2 + 0.8 * kl(0.75, 0.5)),
    # T_t = 1/2 makes of (ln 3, 0) the target (9/10, 1/10); T_s = 2 of (0, ln 4) the student (1/3, 2/3).
    ([[LN3, 0.0]], [[0.0, 2 * LN2]], [1], [0.5], [2.0], 1.0, False, kl(0.9, 1 / 3)),
    # Two rows with temperatures of their own; the scale T_t T_s is 4 in the first and 1 in the second.
    (
        [[2 * LN3, 0.0], [0.0, LN3]],
        [[0.0, 0.0], [0.0, 0.0]],
        [0, 1],
        [2.0, 1.0],
        [2.0, 1.0],
        0.5,
        True,
        0.5 * LN2 + 0.5 * (4 * kl(0.75, 0.5) + kl(0.75, 0.5)) / 2,
    ),
]


@pytest.mark.parametrize(("targets", "student", "labels", "t_t", "t_s", "alpha", "squared", "expected"), CASES)
def test_by_hand(
    targets: list[list[float]],
    student: list[list[float]],
    labels: list[int],
    t_t: list[float],
    t_s: list[float],
    alpha: float,
    squared: bool,
    expected: float,
) -> None:
    loss = dynamic_loss(
        torch.tensor(student),
        torch.tensor(targets),
        torch.tensor(labels),
        torch.tensor(t_t),
        torch.tensor(t_s),
        alpha,
        squared=squared,
    )
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def draw(rows: int = 6, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    t = 0.6 + torch.rand(2, rows, generator=generator, dtype=torch.float64)
    return z, t[0], t[1]


def test_the_teacher_as_student_has_no_loss_and_no_gradient() -> None:
    z, _, _ = draw()
    student = z.clone().requires_grad_()
    ones = torch.ones(6)
    loss = dynamic_loss(student, z, None, ones, ones, 1.0)
    gradient = torch.autograd.grad(loss, student)[0]
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert gradient.abs().max() < 1e-12


def test_the_gradient_vanishes_where_the_temperatures_say() -> None:
    z, t_t, t_s = draw()
    student = ((t_s / t_t).unsqueeze(1) * z + torch.randn(6, 1, dtype=torch.float64)).requires_grad_()
    gradient = torch.autograd.grad(dynamic_loss(student, z, None, t_t, t_s, 1.0), student)[0]
    assert gradient.abs().max() < 1e-6
    moved = (student.detach() * 1.1).requires_grad_()
    assert torch.autograd.grad(dynamic_loss(moved, z, None, t_t, t_s, 1.0), moved)[0].abs().max() > 1e-3


def test_without_a_soft_term_it_is_cross_entropy() -> None:
    z, t_t, t_s = draw()
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.equal(dynamic_loss(2 * z, z, labels, t_t, t_s, 0.0), F.cross_entropy(2 * z, labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_finite_at_extremes(dtype: torch.dtype) -> None:
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 5.0]], dtype=dtype)
    student = (-z).requires_grad_()
    loss = dynamic_loss(student, z, torch.tensor([0, 1]), torch.ones(2), torch.ones(2), 0.8, squared=True)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_labels_are_needed() -> None:
    z, t_t, t_s = draw()
    with pytest.raises(ValueError, match="labels"):
        dynamic_loss(z, z, None, t_t, t_s, 0.5)
