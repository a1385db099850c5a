"""Banks of experts with a layer for each matrix: equal to the stock module, rebuilt from JSON."""

from __future__ import annotations

import json

import torch
from torch import nn

from compresskit.nn.experts import STACKS, Experts, fused_onnx
from tests import models


def bank() -> tuple[nn.Module, Experts]:
    stock = models.tiny("mixtral").layers[0].mlp.experts
    return stock, Experts.from_module(stock)


def routed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Seven tokens; none goes to expert 1, and expert 3 is what another device computes."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, models.HIDDEN, generator=generator)
    chosen = torch.tensor([[0, 2], [2, 0], [0, 3], [0, 2], [2, 3], [2, 0], [0, 2]])
    return hidden, chosen, torch.rand(7, 2, generator=generator)


def test_equal_to_the_stock_module() -> None:
    stock, layer = bank()
    hidden, chosen, weights = routed()
    weights = weights * (chosen < 3)
    chosen = chosen.clamp(max=2)
    assert (layer(hidden, chosen, weights) - stock(hidden, chosen, weights)).abs().max() <= 1e-5


def test_experts_of_other_devices_are_left_out() -> None:
    _, layer = bank()
    hidden, chosen, weights = routed()
    alone = layer(hidden, chosen.clamp(max=2), weights * (chosen < 3))
    assert torch.allclose(layer(hidden, chosen, weights), alone, atol=1e-6)


def test_an_expert_sees_its_tokens_and_nothing_without_any() -> None:
    _, layer = bank()
    hidden, chosen, weights = routed()
    seen: dict[int, torch.Tensor] = {}
    for number, linear in enumerate(layer.gate_up):
        linear.register_forward_pre_hook(lambda _, args, number=number: seen.update({number: args[0]}))
    layer(hidden, chosen, weights)
    assert seen.keys() == {0, 2}
    assert torch.equal(seen[2], hidden[[0, 1, 3, 4, 5, 6]])


def test_rebuilt_from_its_arguments() -> None:
    stock, layer = bank()
    with torch.device("meta"):
        again = Experts(**json.loads(json.dumps(layer.arguments())))
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in layer.state_dict().items()
    }
    assert sum(value.numel() for value in layer.parameters()) == sum(value.numel() for value in stock.parameters())
    assert not set(STACKS) & set(STACKS.values()), "transformers renames what bears a stock name"
    assert torch.equal(layer.weight, stock.gate_up_proj[0])


def test_all_experts_compute_the_same() -> None:
    """What ONNX gets, of the opened bank and of the stock one."""
    stock, layer = bank()
    hidden, chosen, weights = routed()
    expected = layer(hidden, chosen, weights)
    assert (layer.all_experts(hidden, chosen, weights) - expected).abs().max() <= 1e-5
    assert (fused_onnx(stock, hidden, chosen, weights) - expected).abs().max() <= 1e-5
