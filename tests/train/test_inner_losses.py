"""The fast losses against the plain loops; padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compresskit.numerics import hidden_states as plain
from compresskit.numerics.distillation import hidden_loss
from compresskit.train.inner_losses import relation_loss, score_loss, state_loss


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_states() -> None:
    s, t = draw(5, 3), draw(5, 3, seed=1)
    assert float(state_loss(s, t)) == pytest.approx(plain.mean_square_loss(s, t))
    assert float(state_loss(s, t, "unit")) == pytest.approx(plain.unit_loss(s, t))
    assert float(state_loss(s, t, "relative")) == pytest.approx(hidden_loss(s, t))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
def test_maps(heads: int, causal: bool) -> None:
    student, teacher = (draw(1, 4, 4), draw(1, 4, 4, seed=1)), (draw(1, 4, 8, seed=2), draw(1, 4, 8, seed=3))
    whole = torch.ones(1, 4, dtype=torch.bool)
    flat = tuple(x[0] for x in student), tuple(x[0] for x in teacher)
    for fast, slow in ((relation_loss, plain.relation_loss), (score_loss, plain.score_loss)):
        found = float(fast(student, teacher, heads, whole, causal=causal))
        assert found == pytest.approx(slow(*flat, heads, causal=causal))  # type: ignore[arg-type]


@pytest.mark.parametrize("fast", [relation_loss, score_loss])
def test_padding_changes_nothing_and_gets_no_gradient(fast: object) -> None:
    short, long = draw(2, 3, 4), torch.cat([draw(2, 3, 4), 1e3 * draw(2, 2, 4, seed=5)], 1).requires_grad_()
    teacher = draw(2, 3, 4, seed=1)
    longer = torch.cat([teacher, 1e3 * draw(2, 2, 4, seed=6)], 1)
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    expected = fast((short, short), (teacher, teacher), 2, mask[:, :3])  # type: ignore[operator]
    found = fast((long, long), (longer, longer), 2, mask)  # type: ignore[operator]
    assert float(found.detach()) == pytest.approx(float(expected))
    (gradient,) = torch.autograd.grad(found, long)
    assert torch.isfinite(gradient).all()
    assert float(gradient[:, 3:].abs().max()) == 0
    assert float(gradient[:, :3].abs().max()) > 0
