"""Successors that stand in by chance: the rate, the runs, and losses of models put together by hand."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn

from compresskit.core import anatomy, surgery
from compresskit.train.objective import EmbeddingObjective
from compresskit.train.replacing import ReplacingObjective, replacing_rate, runs, standing_in
from tests import models


@pytest.mark.parametrize(
    ("share", "start", "until", "rate"),
    [(0.0, 0.3, 0.5, 0.3), (0.25, 0.3, 0.5, 0.65), (0.5, 0.3, 0.5, 1.0), (0.9, 0.3, 0.5, 1.0), (0.0, 0.3, 0.0, 1.0)],
)
def test_the_rate_grows_linearly(share: float, start: float, until: float, rate: float) -> None:
    assert replacing_rate(share, start, until) == pytest.approx(rate)


def test_runs_are_neighbours_and_leave_nothing_out() -> None:
    assert runs(6, 3) == [range(0, 2), range(2, 4), range(4, 6)]
    assert runs(3, 2) == [range(0, 2), range(2, 3)]
    assert list(chain(*runs(12, 5))) == list(range(12))


class _Add(nn.Module):
    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def forward(self, hidden_states: torch.Tensor, twice: bool = False) -> Any:
        return (hidden_states + self.amount * (1 + twice), "more")


def test_modules_stand_in_for_one_and_leave_no_trace() -> None:
    model = nn.Sequential(_Add(1), _Add(2))
    given = torch.zeros(1)
    with standing_in(model, {"1": [_Add(10), _Add(20)]}):
        assert float(model[1](model[0](given)[0])[0]) == 31
        assert float(model[1](hidden_states=given, twice=True)[0]) == 60
    assert float(model[1](given)[0]) == 2
    assert "forward" not in vars(model[1])
    with pytest.raises(ZeroDivisionError), standing_in(model, {"0": [_Add(1)]}):
        raise ZeroDivisionError
    assert "forward" not in vars(model[0])


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_losses_of_models_put_together_by_hand(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks 0 and 1 of three make the first run, block 2 the second; the student has two."""
    predecessor, student = models.tiny(name), models.tiny(name, seed=1)
    surgery.keep_blocks(student, anatomy.of(student).stacks[0], [0, 1])
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    outside, inside = student.state_dict(), predecessor.state_dict()
    blocks = tuple(block.path for block in anatomy.of(predecessor).blocks)
    for key in outside:
        if not key.startswith(tuple(f"{path}." for path in blocks)):
            outside[key].copy_(inside[key])
    first, second = (student.get_submodule(path).requires_grad_(True) for path in blocks[:2])
    objective = ReplacingObjective(EmbeddingObjective(), predecessor, start=0.5, until=1.0)
    batch = models.inputs(name, batch=2, length=6)
    objective.prepare(predecessor, student, batch)
    targets = objective.targets(predecessor, batch)

    def loss(*draws: float) -> torch.Tensor:
        monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(draws))
        student.zero_grad()
        found = objective.loss(student, batch, targets)
        found.backward()
        return found.detach()

    # Nothing replaced: the predecessor itself, with nothing to learn.
    assert float(loss(0.9, 0.9)) == pytest.approx(0, abs=1e-6)
    assert all(float(parameter.grad.abs().max()) == 0 for parameter in first.parameters())
    # The second run replaced: the predecessor with another third block.
    mixed = copy.deepcopy(predecessor)
    mixed.get_submodule(blocks[2]).load_state_dict(second.state_dict())
    expected = EmbeddingObjective().loss(mixed, batch, targets)
    assert torch.allclose(loss(0.9, 0.1), expected, atol=1e-6)
    assert any(float(parameter.grad.abs().max()) > 0 for parameter in second.parameters())
    assert all(parameter.grad is None for parameter in first.parameters())
    # Everything replaced: the student.
    expected = EmbeddingObjective().loss(student, batch, targets)
    assert torch.equal(loss(0.1, 0.1), expected.detach())
    objective.come_to(1.0)
    assert torch.equal(loss(0.99, 0.99), expected.detach())
