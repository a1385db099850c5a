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


def test_similarity_loss_by_hand_is_blind_to_size_and_rotation_and_exact_under_autocast() -> None:
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    teacher = torch.tensor([[1.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    root = 0.5**0.5
    # Cosines of the pairs 01, 02, 12: student 0, root, root; teacher 1, 0, 0; the diagonal agrees.
    expected = 2 * (1 + root**2 + root**2) / 9
    assert float(losses.similarity_loss(student, teacher)) == pytest.approx(expected, rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        inside = losses.similarity_loss(STUDENT, TEACHER)
    assert torch.equal(inside, losses.similarity_loss(STUDENT, TEACHER))
    turn = torch.linalg.qr(torch.randn(11, 11, generator=torch.Generator().manual_seed(1))).Q
    assert float(losses.similarity_loss(3 * TEACHER @ turn, TEACHER)) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(
    "name", ["response_loss", "binary_response_loss", "cosine_loss", "hidden_loss", "similarity_loss"]
)
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
