"""The layer with fixed activation scales: its products, its arguments, its gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compresskit.nn.static_int8 import StaticInt8Linear
from compresskit.numerics.grids import symmetric
from compresskit.numerics.static_ranges import affine


def layer(
    *, bias: bool = True, smooth: bool = True, scores: bool = False, inputs: int = 40, outputs: int = 12
) -> StaticInt8Linear:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=bias)
    multiplier = torch.rand(inputs) + 0.5 if smooth else None
    matrix = linear.weight.detach() if multiplier is None else linear.weight.detach() / multiplier
    grid = symmetric(matrix, 8)
    return StaticInt8Linear.from_codes(
        grid.codes, grid.scale, linear.bias, *affine(-3.0, 5.0), multiplier, torch.float32, 0.02 if scores else None
    ).eval()


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40,), (7, 40), (2, 5, 40), (300, 40), (2, 0, 40), (0, 40)])
def test_the_definition_in_float64(smooth: bool, bias: bool, shape: tuple[int, ...]) -> None:
    made, x = layer(bias=bias, smooth=smooth), 2 * torch.randn(shape)
    with torch.no_grad():
        found = made(x)
    assert found.shape == (*shape[:-1], 12)
    smoothed = x if made.input_multiplier is None else x * made.input_multiplier
    codes = (torch.round(smoothed / made.input_scale) + made.input_zero).clamp(0, 255).double()
    left = (codes - made.input_zero.double()) * made.input_scale.double()
    expected = left @ (made.weight_codes.double() * made.weight_scale.double()[:, None]).T
    expected = expected if made.bias is None else expected + made.bias.double()
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-5, atol=1e-4)


def test_rows_don_t_touch_each_other() -> None:
    made, x = layer(), torch.randn(6, 40)
    other = torch.cat((x[:3], 100 * x[3:]))
    with torch.no_grad():
        assert torch.equal(made(x)[:3], made(other)[:3])


def test_the_weight_is_what_the_product_uses() -> None:
    made = layer()
    x = torch.randn(200, 40).clamp(-1.9, 1.9)  # inside the range, after the multiplier
    with torch.no_grad():
        error = (made(x) - (x @ made.weight.T + made.bias)).norm() / made(x).norm()
    assert float(error) < 0.02


@pytest.mark.parametrize("scores", [True, False])
def test_arguments_rebuild_it_and_scales_keep_their_type(scores: bool) -> None:
    made = layer(scores=scores)
    with torch.device("meta"):
        empty = StaticInt8Linear(**made.arguments())
    assert {name: (tuple(p.shape), p.dtype) for name, p in empty.named_parameters()} == {
        name: (tuple(p.shape), p.dtype) for name, p in made.named_parameters()
    }
    half = copy.deepcopy(made).bfloat16()
    assert half.weight_scale.dtype == half.input_scale.dtype == torch.float32
    assert half.output_scale is None if not scores else half.output_scale.dtype == torch.float32
    assert half(torch.randn(2, 40, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_gradients_are_those_of_the_product() -> None:
    made, x = layer(smooth=False), torch.randn(3, 40, requires_grad=True)
    made(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, made.weight.sum(0).expand(3, -1))
    with torch.no_grad():
        without = made(x)
    torch.testing.assert_close(made(x), without, rtol=1e-6, atol=1e-6)
