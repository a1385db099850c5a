from __future__ import annotations

import pytest
import torch
from torch import nn

from compresskit.nn.int8 import Int8Linear
from compresskit.nn.low_rank import LowRankLinear


def made(dtype: torch.dtype = torch.float32, *, bias: bool = True) -> LowRankLinear:
    up, down = torch.randn(12, 5, dtype=dtype), torch.randn(5, 40, dtype=dtype)
    return LowRankLinear.from_factors(up, down, torch.randn(12, dtype=dtype) if bias else None)


@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_dense_layer_of_its_product(bias: bool) -> None:
    layer, x = made(bias=bias), torch.randn(2, 3, 40)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
    assert layer.weight.shape == (12, 40)


def test_factors_are_copies_in_their_dtype() -> None:
    up, down = torch.randn(12, 5, dtype=torch.bfloat16), torch.randn(5, 40, dtype=torch.bfloat16)
    layer = LowRankLinear.from_factors(up, down, None)
    up.zero_()
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}
    assert float(layer.weight.detach().abs().max()) > 0


def test_all_of_it_can_be_trained() -> None:
    layer = made()
    layer(torch.randn(4, 40)).square().mean().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in layer.parameters())


def test_its_factors_can_be_int8() -> None:
    layer = made()
    dense, x = layer.weight.detach(), torch.randn(6, 40)
    expected = nn.functional.linear(x, dense, layer.bias).detach()
    layer.down = Int8Linear.from_weight(layer.down.weight, None)  # type: ignore[arg-type]
    layer.up = Int8Linear.from_weight(layer.up.weight, layer.up.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        assert float((layer(x) - expected).norm() / expected.norm()) < 0.03
    assert float((layer.weight - dense).norm() / dense.norm()) < 0.03


def test_counts_only_what_its_children_do_not() -> None:
    layer = made()
    assert layer.parameter_count() == 0
    assert layer.stored_bytes() == 4 * (5 * 40 + 12 * 5 + 12)
