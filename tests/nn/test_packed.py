from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from compresskit.nn.packed import PackedLinear
from compresskit.numerics.rtn import Codes, quantize

KINDS: list[dict[str, Any]] = [
    {"bits": bits, "group": group, "symmetric": symmetric}
    for bits in (2, 3, 4, 5, 6, 7, 8)
    for group, symmetric in ((8, False), (None, True), (20, True), (None, False))
]
EVERY = pytest.mark.parametrize("options", [*KINDS, {"bits": 6, "whole": True}], ids=str)


def codes(**options: Any) -> Codes:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(12, 40, generator=generator)
    return quantize(weight, options.pop("bits"), options.pop("group", None), scale_dtype=torch.float16, **options)


@EVERY
def test_the_weight_is_what_the_codes_say(options: dict[str, Any]) -> None:
    made, bias, x = codes(**options), torch.randn(12), torch.randn(2, 5, 40)
    layer = PackedLinear.from_codes(made, bias, torch.float32)
    assert torch.equal(layer.weight + 0, made.values())
    with torch.no_grad():
        torch.testing.assert_close(layer(x), nn.functional.linear(x, made.values(), bias))
        assert layer(x[:0]).shape == (0, 5, 12)
        assert layer(x[0, 0]).shape == (12,)


@EVERY
def test_bytes_are_what_the_formula_says(options: dict[str, Any]) -> None:
    layer = PackedLinear.from_codes(codes(**options), None, torch.float32)
    group, bits = options.get("group") or 40, options["bits"]
    rows = 1 if options.get("whole") else 12
    zeros = 0 if options.get("symmetric") else rows * -(-bits * (40 // group) // 8)
    assert layer.stored_bytes() == 12 * 5 * bits + rows * 2 * (40 // group) + zeros
    assert layer.parameter_count() == 12 * 40


def test_bits_on_disk_are_the_bits_asked_for() -> None:
    made = quantize(torch.randn(64, 512), 3, 64, scale_dtype=torch.float16)
    layer = PackedLinear.from_codes(made, None, torch.float32)
    assert layer.stored_bytes() * 8 / (64 * 512) == pytest.approx(3 + (16 + 3) / 64, rel=0.01)


def test_float_zero_points() -> None:
    made = codes(bits=4, group=8)
    between = Codes(made.codes, made.scale, (made.zero.float() + 0.25).half(), 4)  # type: ignore[union-attr]
    layer = PackedLinear.from_codes(between, None, torch.float32)
    assert layer.zeros == "float"
    assert torch.equal(layer.weight + 0, between.values())


def test_gradients_are_those_of_the_float_layer() -> None:
    made, scale = codes(bits=3, group=8), torch.rand(40) + 0.5
    layer = PackedLinear.from_codes(made, torch.randn(12), torch.float32, scale)
    x, seed = torch.randn(2, 5, 40, requires_grad=True), torch.randn(2, 5, 12)
    layer(x).backward(seed)
    assert layer.bias is not None
    torch.testing.assert_close(x.grad, seed @ layer.weight)
    torch.testing.assert_close(layer.bias.grad, seed.sum((0, 1)))
    assert layer.codes.grad is None


def test_the_input_is_scaled_before_the_product() -> None:
    made, scale, x = codes(bits=4, group=8), torch.rand(40) + 0.5, torch.randn(3, 40)
    layer = PackedLinear.from_codes(made, None, torch.float32, scale)
    torch.testing.assert_close(layer(x), (x * scale) @ made.values().T)
    torch.testing.assert_close(layer.weight + 0, made.values() * scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_scales(dtype: torch.dtype) -> None:
    layer = PackedLinear.from_codes(codes(bits=4, group=8), torch.randn(12), torch.float32)
    half = copy.deepcopy(layer).to(dtype)
    assert torch.equal(half.scale, layer.scale)
    assert half.weight.dtype == half.dtype == dtype
    with torch.no_grad():
        assert half(torch.randn(3, 40, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    "wrong",
    [{"bits": 1}, {"bits": 9}, {"group": 7}, {"group": 8, "whole": True}, {"zeros": "no"}, {"scale_type": "int8"}],
)
def test_impossible_layers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no "):
        PackedLinear(**{"in_features": 40, "out_features": 12, "bits": 4, "group": None, "bias": False, **wrong})
