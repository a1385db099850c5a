from __future__ import annotations

import torch
from torch import nn

from compresskit.nn.low_rank import LowRankLinear
from compresskit.nn.packed import PackedLinear
from compresskit.nn.residual import ResidualLinear
from compresskit.numerics.rtn import quantize


def layer(*, bias: bool = True) -> ResidualLinear:
    codes = quantize(torch.randn(12, 40), 3, 8, scale_dtype=torch.float16)
    base = PackedLinear.from_codes(codes, None, torch.float32)
    factors = LowRankLinear.from_factors(torch.randn(12, 5), torch.randn(5, 40), None)
    return ResidualLinear.from_parts(base, factors, torch.randn(12) if bias else None)


def test_equals_the_dense_layer_of_its_sum() -> None:
    for made in (layer(), layer(bias=False)):
        dense = made.base.weight + made.correction.weight
        x = torch.randn(2, 3, 40)
        torch.testing.assert_close(made(x), nn.functional.linear(x, dense, made.bias), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(made.weight + 0, dense + 0)


def test_gradients_reach_input_factors_and_bias() -> None:
    made, x = layer(), torch.randn(4, 40, requires_grad=True)
    made(x).square().sum().backward()
    (dense,) = torch.autograd.grad(nn.functional.linear(x, made.weight.detach() + 0, made.bias).square().sum(), x)
    torch.testing.assert_close(x.grad, dense, rtol=1e-4, atol=1e-4)
    trained = {name for name, parameter in made.named_parameters() if parameter.grad is not None}
    assert trained == {"correction.down.weight", "correction.up.weight", "bias"}


def test_counts_only_what_its_children_do_not() -> None:
    made = layer()
    assert made.parameter_count() == 12
    assert made.stored_bytes() == made.base.stored_bytes() + made.correction.stored_bytes() + 4 * 12
