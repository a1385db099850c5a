from __future__ import annotations

import math

import pytest
import torch

from compresskit.numerics.distillation import (
    cosine_loss,
    hidden_loss,
    response_gradient,
    response_loss,
    similarity_loss,
    softmax,
)

LOG3 = math.log(3.0)


def test_softmax_by_hand() -> None:
    torch.testing.assert_close(softmax(torch.tensor([0.0, LOG3])), torch.tensor([0.25, 0.75]).double())
    torch.testing.assert_close(softmax(torch.tensor([0.0, 2 * LOG3]), 2.0), torch.tensor([0.25, 0.75]).double())
    assert softmax(torch.tensor([1e4, 0.0])).tolist() == [1.0, 0.0]


def test_response_loss_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, LOG3]])
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert response_loss(student, teacher) == pytest.approx(expected)
    assert response_loss(student, 2 * teacher, 2.0) == pytest.approx(4 * expected)


def test_the_factor_keeps_the_gradient_alike_at_all_temperatures() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 16, 10, generator=generator)
    sizes = [float(response_gradient(student, teacher, t).norm()) for t in (1.0, 4.0, 16.0, 64.0)]
    assert max(sizes) < 2 * min(sizes)
    limit = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(
        response_gradient(student, teacher, 1e4), (limit / 10 / 16).double(), rtol=1e-2, atol=1e-5
    )


def test_losses_of_embeddings_by_hand() -> None:
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    teacher = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    assert cosine_loss(student, teacher) == pytest.approx((0 + 1 - math.sqrt(0.5)) / 2)
    assert hidden_loss(student, teacher) == pytest.approx((1 + 1 + 1) / (4 + 2))
    assert similarity_loss(student, teacher) == pytest.approx(2 * 0.5 / 4)
