"""Two and three levels in training: what is computed is what is stored, and gradients are those of the papers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compresskit.nn.fake_lookup import FakeLookupLinear
from compresskit.nn.lookup import LookupLinear
from compresskit.numerics import lookup

KINDS: list[dict[str, Any]] = [
    {"levels": 2},
    {"levels": 2, "group": 8, "scales": "learned"},
    {"levels": 2, "scales": "loss"},
    {"levels": 3, "group": 8},
    {"levels": 3, "scales": "learned"},
    {"levels": 3, "group": 20, "scales": "loss"},
]


def layer(**options: Any) -> FakeLookupLinear:
    torch.manual_seed(0)
    return FakeLookupLinear.from_weight(0.1 * torch.randn(12, 40), torch.randn(12), **options)


def train(made: FakeLookupLinear) -> list[float]:
    """Losses of some steps."""
    optimizer = torch.optim.Adam([each for each in made.parameters() if each.requires_grad], lr=0.01)
    x, target = torch.randn(20, 40), torch.randn(20, 12)
    losses = []
    for _ in range(30):
        loss = (made(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_what_is_trained_is_what_is_deployed(options: dict[str, Any]) -> None:
    made = layer(**options)
    begun = made.deployed().weight + 0
    rule = lookup.binary if options["levels"] == 2 else lookup.ternary
    if options.get("scales") != "loss":
        expected = rule(made.values.detach(), options.get("group")).values()
        torch.testing.assert_close(begun, expected, rtol=0, atol=1e-7)
    losses = train(made)
    assert losses[-1] < 0.95 * losses[0], losses
    deployed = made.deployed()
    assert type(deployed) is LookupLinear
    assert torch.equal(deployed.weight + 0, made.weight)
    assert not torch.equal(deployed.weight + 0, begun)
    x = torch.randn(5, 40)
    torch.testing.assert_close(deployed(x), made(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("levels", [2, 3])
def test_gradients_pass_straight_through(levels: int) -> None:
    """As they are, inside of -1 ... 1; none beyond."""
    made = layer(levels=levels)
    with torch.no_grad():
        made.values[0, :3] = torch.tensor([1.5, -2.0, 0.9])
    gradient = torch.randn(12, 40)
    (made.weight * gradient).sum().backward()
    expected = gradient.clone()
    expected[0, :2] = 0
    torch.testing.assert_close(made.values.grad, expected)


def test_learned_levels_take_the_gradients_of_ttq() -> None:
    """Equations 7 and 8, number by number."""
    made = layer(levels=3, scales="learned")
    with torch.no_grad():
        assert made.factor is not None
        made.factor[..., 1] = 1.5
    gradient = torch.randn(12, 40)
    (made.weight * gradient).sum().backward()
    assert made.start is not None
    assert made.values.grad is not None
    assert made.factor.grad is not None
    codes = lookup.ternary(made.values.detach()).codes.int() - 1
    for row in range(12):
        above = float(made.start[row, 0, 0])
        below = 1.5 * above
        sums = [0.0, 0.0]
        for column in range(40):
            sign, outer = int(codes[row, column]), float(gradient[row, column])
            size = {1: above, 0: 1.0, -1: below}[sign]
            assert float(made.values.grad[row, column]) == pytest.approx(size * outer, abs=1e-6)
            sums[0] += outer * above * (sign == 1)
            sums[1] -= outer * above * (sign == -1)
        assert made.factor.grad[row, 0].tolist() == pytest.approx(sums, abs=1e-5)


@pytest.mark.parametrize("levels", [2, 3])
def test_the_loss_weighs_what_it_feels(levels: int) -> None:
    """One weight with a large gradient: the scale goes to its size."""
    made = layer(levels=levels, scales="loss")
    with torch.no_grad():
        made.values[0, 0] = 0.7
    before = made.weight.detach()
    gradient = torch.full((12, 40), 1e-3)
    gradient[0, 0] = 1e3
    (made.weight * gradient).sum().backward()
    after = made.weight.detach()
    assert abs(float(after[0, 0]) - 0.7) < 1e-3 < abs(float(before[0, 0]) - 0.7)
    plain = layer(levels=levels).weight.detach()[1:]
    if levels == 2:
        torch.testing.assert_close(after[1:], plain)


@pytest.mark.parametrize(
    "options", [{"levels": 4}, {"levels": 2, "group": 7}, {"levels": 3, "group": 8, "scales": "learned"}]
)
def test_what_there_is_not(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="levels"):
        layer(**options)
