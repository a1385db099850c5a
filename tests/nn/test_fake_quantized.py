"""The layer in training computes what the layer computes that it becomes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compresskit.nn.fake_quantized import FakeQuantizedLinear
from compresskit.nn.int8 import Int8Linear
from compresskit.nn.packed import PackedLinear
from compresskit.numerics.grids import symmetric
from compresskit.numerics.rtn import Codes, quantize

PACKED: list[dict[str, Any]] = [
    {"bits": 3, "group": 8},
    {"bits": 4, "group": None, "symmetric": True},
    {"bits": 5, "group": 10, "scale_dtype": torch.float16},
    {"bits": 8, "group": None, "whole": True},
]


def integer(inputs: str) -> FakeQuantizedLinear:
    torch.manual_seed(0)
    weight = torch.randn(12, 40)
    grid = symmetric(weight, 8)
    codes = Codes((grid.codes.to(torch.int16) + 128).to(torch.uint8), grid.scale, None, 8)
    return FakeQuantizedLinear.from_codes(codes, weight, torch.randn(12), inputs=inputs)  # type: ignore[arg-type]


def layer(options: dict[str, Any], learned: bool = True) -> FakeQuantizedLinear:
    torch.manual_seed(0)
    weight = torch.randn(12, 40)
    return FakeQuantizedLinear.from_codes(quantize(weight, **options), weight, torch.randn(12), learned=learned)


def train(made: FakeQuantizedLinear) -> None:
    """A few steps, so that weights and scales are no longer those that it began with."""
    optimizer = torch.optim.Adam([each for each in made.parameters() if each.requires_grad], lr=0.05)
    x, target = torch.randn(20, 40), torch.randn(20, 12)
    for _ in range(5):
        loss = (made(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("options", PACKED, ids=str)
@pytest.mark.parametrize("trained", [False, True])
def test_what_is_trained_is_what_is_deployed(options: dict[str, Any], trained: bool) -> None:
    made = layer(options)
    if trained:
        train(made)
    deployed = made.deployed()
    assert type(deployed) is PackedLinear
    assert torch.equal(deployed.weight + 0, made.weight)
    x = torch.randn(5, 40)
    torch.testing.assert_close(deployed(x), made(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("inputs", ["token", "tensor"])
@pytest.mark.parametrize("trained", [False, True])
def test_integer_products_are_bit_equal(inputs: str, trained: bool) -> None:
    made = integer(inputs)
    if trained:
        train(made)
    deployed = made.deployed()
    assert type(deployed) is Int8Linear
    x = torch.randn(2, 5, 40)
    with torch.no_grad():
        assert torch.equal(deployed(x), made(x))
        assert not torch.allclose(made(x), torch.nn.functional.linear(x, made.weight, made.bias), atol=1e-6)


def test_int8_begins_where_int8_would() -> None:
    torch.manual_seed(0)
    expected = Int8Linear.from_weight(torch.randn(12, 40), None)
    assert torch.equal(integer("token").deployed().weight + 0, expected.weight + 0)


@pytest.mark.parametrize("learned", [True, False])
def test_training_fits_and_moves_steps_only_where_learned(learned: bool) -> None:
    made = layer({"bits": 3, "group": 8}, learned)
    before = made.step.detach().clone()
    train(made)
    assert torch.equal(made.step, before) is not learned
    assert made.values.grad is not None


def test_nothing_moves_far_beyond_the_range() -> None:
    """Weights that the range clips take no gradient."""
    made = layer({"bits": 2, "group": 8})
    with torch.no_grad():
        made.values[0] = 100.0
    made(torch.randn(4, 40)).square().sum().backward()
    assert made.values.grad is not None
    assert not made.values.grad[0].any()
    assert made.values.grad[1].any()


@pytest.mark.parametrize(
    "arguments",
    [
        {"bits": 1, "group": None},
        {"bits": 4, "group": 7},
        {"bits": 4, "group": None, "inputs": "token"},
        {"bits": 8, "group": None, "inputs": "token", "zeros": True},
    ],
)
def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no matrix of|integer products"):
        FakeQuantizedLinear(40, 12, bias=True, **arguments)
