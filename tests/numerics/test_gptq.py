"""The solver against its definition, and against rounding to the nearest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compresskit.numerics.gptq import gptq_codes, gptq_oracle
from compresskit.numerics.grids import asymmetric, symmetric


def problem(outputs: int = 12, inputs: int = 24, tokens: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix, correlated inputs (N, I), and their gram matrix."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(inputs, inputs, generator=generator)
    rows = torch.randn(tokens, inputs, generator=generator) @ mix
    weight = torch.randn(outputs, inputs, generator=generator)
    return weight, rows, (rows.T @ rows).double()


def test_it_is_the_definition() -> None:
    weight, _, gram = problem()
    grid = symmetric(weight, 4)
    found = gptq_codes(weight, gram, grid.scale, None, -7, 7, damping=0.01, act_order=False)
    expected = gptq_oracle(weight, gram, grid.scale, -7, 7, 0.01)
    assert float((found.double() != expected).double().mean()) < 0.02, "ties of rounding apart, the same codes"


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", [None, 8])
def test_outputs_move_less_than_by_the_nearest_codes(bits: int, act_order: bool, group: int | None) -> None:
    weight, rows, gram = problem()
    grid = asymmetric(weight, bits, group)
    codes = gptq_codes(weight, gram, grid.scale, grid.zero, 0, 2**bits - 1, act_order=act_order)
    assert bool(((codes >= 0) & (codes < 2**bits) & (codes == codes.round())).all())
    scale = grid.scale.float().repeat_interleave(24 // grid.scale.shape[1], 1)
    zero = torch.zeros(()) if grid.zero is None else grid.zero.float().repeat_interleave(24 // grid.scale.shape[1], 1)
    exact = rows @ weight.T
    solved = float((rows @ ((codes - zero) * scale).T - exact).norm())
    nearest = float((rows @ grid.values().T - exact).norm())
    assert solved < nearest


def test_dead_and_constant_inputs_give_finite_codes() -> None:
    weight, rows, _ = problem()
    rows[:, 3] = 0
    rows[:, 5] = 1e-3
    weight[2] = 0
    grid = symmetric(weight, 4)
    codes = gptq_codes(weight, (rows.T @ rows).double(), grid.scale, None, -7, 7)
    assert bool(codes.isfinite().all())
    assert torch.equal(codes[:, 3], grid.codes[:, 3].float()), "an input that is never used is rounded to the nearest"
    assert not codes[2].any()


def test_independent_inputs_are_rounded_to_the_nearest() -> None:
    weight, _, _ = problem()
    grid = symmetric(weight, 4)
    assert torch.equal(gptq_codes(weight, torch.eye(24), grid.scale, None, -7, 7), grid.codes.float())
