from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from compresskit.core.weights import view_of
from compresskit.nn.int8 import Activations, Int8Linear
from compresskit.numerics import integer

EVERY = pytest.mark.parametrize("activations", ["token", "tensor"])


def layer(activations: Activations = "token", *, bias: bool = True, inputs: int = 40, outputs: int = 12) -> Int8Linear:
    linear = nn.Linear(inputs, outputs, bias=bias)
    return Int8Linear.from_weight(linear.weight, linear.bias, activations).eval()


@EVERY
@pytest.mark.parametrize("shape", [(40,), (7, 40), (2, 5, 40), (2, 0, 40), (0, 40)])
def test_shapes_and_the_oracle(activations: Activations, shape: tuple[int, ...]) -> None:
    made, x = layer(activations), torch.randn(shape) * 3
    with torch.no_grad():
        found = made(x)
    assert found.shape == (*shape[:-1], 12)
    rows, per_token = x.reshape(-1, 40), activations == "token"
    expected = integer.linear_oracle(rows, made.weight_codes, made.weight_scale, per_token=per_token)
    expected = (expected + made.bias).reshape(found.shape)
    largest = float(expected.detach().abs().max()) if len(rows) else 1.0
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * largest)


@EVERY
def test_close_to_the_float_layer(activations: Activations) -> None:
    linear = nn.Linear(256, 64)
    made, x = Int8Linear.from_weight(linear.weight, linear.bias, activations), torch.randn(4, 9, 256)
    with torch.no_grad():
        error = (made(x) - linear(x)).norm() / linear(x).norm()
    assert float(error) < 0.02


def test_with_and_without_gradients_the_same() -> None:
    made, x = layer(), torch.randn(3, 40)
    with torch.no_grad():
        without = made(x)
    assert torch.equal(made(x.requires_grad_()), without)


@EVERY
def test_gradients_are_those_of_the_float_product(activations: Activations) -> None:
    made = layer(activations)
    x = torch.randn(2, 5, 40, requires_grad=True)
    seed = torch.randn(2, 5, 12)
    made(x).backward(seed)
    assert made.bias is not None
    assert made.bias.grad is not None
    torch.testing.assert_close(x.grad, seed @ made.weight)
    torch.testing.assert_close(made.bias.grad, seed.sum((0, 1)))
    assert made.weight_codes.grad is None
    assert made.weight_scale.grad is None


def test_a_training_step_lowers_the_loss() -> None:
    made, target, x = nn.Sequential(nn.Linear(8, 40), layer()), torch.randn(64, 12), torch.randn(64, 8)
    optimizer = torch.optim.SGD([each for each in made.parameters() if each.requires_grad], lr=1.0)
    losses = []
    for _ in range(20):
        loss = (made(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_conv1d_through_the_view() -> None:
    conv = Conv1D(12, 40)
    nn.init.normal_(conv.bias)
    view = view_of("conv", conv)
    assert view is not None
    made, x = Int8Linear.from_weight(view.weight, view.bias), torch.randn(3, 40)
    assert made.weight_codes.is_contiguous()
    with torch.no_grad():
        assert float((made(x) - conv(x)).abs().max()) < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_scales_and_computes_in_float32(dtype: torch.dtype) -> None:
    made = layer()
    scale = made.weight_scale.clone()
    half = copy.deepcopy(made).to(dtype)
    assert half.weight_scale.dtype == torch.float32
    assert torch.equal(half.weight_scale, scale)
    assert half.bias is not None
    assert half.bias.dtype == half.weight.dtype == half.dtype == dtype
    x = torch.randn(4, 40, dtype=dtype)
    with torch.no_grad():
        found = half(x)
        exact = integer.linear(x.float(), made.weight_codes, scale, half.bias.float(), per_token=True)
    assert found.dtype == dtype
    assert torch.equal(found, exact.to(dtype))


def test_a_half_precision_weight_makes_a_half_precision_layer() -> None:
    weight = torch.randn(12, 40, dtype=torch.bfloat16)
    made = Int8Linear.from_weight(weight, None)
    assert made.dtype == made.weight.dtype == torch.bfloat16
    assert made.weight_scale.dtype == torch.float32


def test_autocast_changes_no_sum() -> None:
    made, x = layer(), torch.randn(4, 40)
    with torch.no_grad():
        plain = made(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(made(x), plain)


def test_rows_of_zeros_stay_zeros() -> None:
    weight = torch.randn(12, 40)
    weight[3] = 0
    made = Int8Linear.from_weight(weight, None)
    assert bool(torch.isfinite(made.weight_scale).all())
    with torch.no_grad():
        assert bool((made(torch.randn(5, 40))[:, 3].abs() < 1e-6).all())


def test_counts_and_bytes() -> None:
    made = layer()
    assert made.parameter_count() == 12 * 40 + 12
    assert made.stored_bytes() == 12 * 40 + 4 * 12 + 4 * 12


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="token"):
        Int8Linear(4, 4, True, "row")  # type: ignore[arg-type]
