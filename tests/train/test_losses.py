from __future__ import annotations

import pytest
import torch

from compresskit.numerics import distillation as oracle
from compresskit.train import losses

GENERATOR = torch.Generator().manual_seed(3)
STUDENT, TEACHER = torch.randn(2, 7, 11, generator=GENERATOR)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 20.0])
def test_response_loss_and_gradient_equal_the_oracle(temperature: float) -> None:
    student = STUDENT.clone().requires_grad_()
    loss = losses.response_loss(student, TEACHER, temperature)
    assert float(loss.detach()) == pytest.approx(oracle.response_loss(STUDENT, TEACHER, temperature), rel=1e-4)
    loss.backward()
    expected = oracle.response_gradient(STUDENT, TEACHER, temperature)
    torch.testing.assert_close(student.grad.double(), expected, rtol=1e-4, atol=1e-7)


def test_a_decision_per_class_is_a_distribution_over_two() -> None:
    pairs = [torch.stack([z.flatten(), torch.zeros(z.numel())], 1) for z in (STUDENT, TEACHER)]
    expected = oracle.response_loss(pairs[0], pairs[1], 2.0) * STUDENT.shape[1]
    assert float(losses.binary_response_loss(STUDENT, TEACHER, 2.0)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["cosine_loss", "hidden_loss"])
def test_losses_of_embeddings_equal_the_oracle(name: str) -> None:
    found = float(getattr(losses, name)(STUDENT, TEACHER))
    assert found == pytest.approx(getattr(oracle, name)(STUDENT, TEACHER), rel=1e-5)


@pytest.mark.parametrize("name", ["response_loss", "binary_response_loss", "cosine_loss", "hidden_loss"])
def test_equal_outputs_give_no_loss_and_no_gradient(name: str) -> None:
    student = TEACHER.clone().requires_grad_()
    loss = getattr(losses, name)(student, TEACHER)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-6
    assert float(student.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("name", ["response_loss", "cosine_loss", "hidden_loss"])
def test_half_precision_is_computed_in_float32(name: str) -> None:
    found = getattr(losses, name)(STUDENT.bfloat16(), TEACHER.bfloat16())
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(getattr(losses, name)(STUDENT, TEACHER)), rel=0.05)
