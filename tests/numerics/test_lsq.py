"""Gradients through rounding: by hand, number by number, and by finite differences where they are true derivatives."""

from __future__ import annotations

import pytest
import torch

from compresskit.numerics.lsq import as_stored, carried, fake_quantized, gradient_share, step_gradient_oracle


def gradients(
    weight: list[float], outer: list[float], scale: float, zero: float, bits: int
) -> tuple[torch.Tensor, float]:
    values = torch.tensor([weight], dtype=torch.float64, requires_grad=True)
    step = torch.tensor([[scale]], dtype=torch.float64, requires_grad=True)
    found = fake_quantized(values, step, torch.tensor([[zero]], dtype=torch.float64), bits)
    found.backward(torch.tensor([outer], dtype=torch.float64))
    assert values.grad is not None
    assert step.grad is not None
    return values.grad[0], float(step.grad)


def test_values_and_gradients_by_hand() -> None:
    """b = 2, s = .5, z = 1: codes 0 … 3 stand for -.5, 0, .5, 1.

    w = .6 is inside: d = 1 - 1.2 = -.2; w = 2 is above: d = 2; w = -.9 is below: d = -1; w = .1: d = 0 - .2 = -.2.
    With outer gradients 1, 10, 100, 1000: (-.2 + 20 - 100 - 200) / sqrt(4 · 2).
    """
    weight, outer = [0.6, 2.0, -0.9, 0.1], [1.0, 10.0, 100.0, 1000.0]
    values = fake_quantized(torch.tensor([weight]), torch.tensor([[0.5]]), torch.tensor([[1.0]]), 2)
    assert values.tolist() == [[0.5, 1.0, -0.5, 0.0]]
    of_weights, of_step = gradients(weight, outer, 0.5, 1.0, 2)
    assert of_weights.tolist() == [1.0, 0.0, 0.0, 1000.0]
    assert of_step == pytest.approx((-0.2 + 20 - 100 - 200) / 8**0.5)
    assert step_gradient_oracle(weight, outer, 0.5, 1.0, 2) == pytest.approx(of_step)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("scale", [0.3, -0.3])
def test_against_the_loop(bits: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight = (0.3 * 2 ** (bits - 1) * torch.randn(40, generator=generator, dtype=torch.float64)).tolist()
    outer = torch.randn(40, generator=generator, dtype=torch.float64).tolist()
    _, found = gradients(weight, outer, scale, 2.0 ** (bits - 1), bits)
    assert found == pytest.approx(step_gradient_oracle(weight, outer, scale, 2.0 ** (bits - 1), bits))


def test_beyond_the_range_it_is_the_true_derivative() -> None:
    """A clipped weight stands for s times a constant, so that d ŵ / d s is that constant."""
    weight = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    zero, small = torch.tensor([[4.0]], dtype=torch.float64), 1e-6

    def total(scale: float) -> float:
        return float(fake_quantized(weight, torch.tensor([[scale]], dtype=torch.float64), zero, 3).sum())

    slope = (total(0.2 + small) - total(0.2 - small)) / (2 * small)
    _, found = gradients([3.0, -4.0], [1.0, 1.0], 0.2, 4.0, 3)
    assert found / gradient_share(2, 3) == pytest.approx(slope)


def test_the_share() -> None:
    assert gradient_share(32, 3) == pytest.approx(1 / (32 * 4) ** 0.5)


def test_stored_scales_pass_their_gradient() -> None:
    scale = torch.tensor([0.1, 1e-9], requires_grad=True)
    found = as_stored(scale, torch.float16)
    assert torch.equal(found, torch.tensor([float(torch.tensor(0.1).half()), torch.finfo(torch.float16).tiny]))
    found.backward(torch.tensor([2.0, 3.0]))
    assert scale.grad is not None
    assert scale.grad.tolist() == [2.0, 3.0]


def test_carried_values_are_exact() -> None:
    carrier, value = torch.tensor([1e8], requires_grad=True), torch.tensor([0.1])
    found = carried(carrier, value)
    assert torch.equal(found, value)
    found.backward()
    assert carrier.grad is not None
    assert carrier.grad.tolist() == [1.0]
