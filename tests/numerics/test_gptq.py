from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compresskit.numerics.gptq import feedback, gptq, gptq_oracle, output_error
from compresskit.numerics.rtn import quantize


def inputs(count: int, features: int, seed: int = 0) -> Tensor:
    """Correlated rows, as activations are."""
    mix = torch.randn(features, features, generator=torch.Generator().manual_seed(0)) / features**0.5
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed + 1)) @ (mix + torch.eye(features))


def weights(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(("group", "symmetric"), [(None, False), (8, False), (8, True)])
def test_equals_the_oracle(act_order: bool, group: int | None, symmetric: bool) -> None:
    weight, rows = weights(5, 24), inputs(100, 24)
    gram = rows.T @ rows
    found = gptq(weight, gram, 3, group, symmetric=symmetric, act_order=act_order, block=7)
    order = gram.diagonal().argsort(descending=True, stable=True).tolist() if act_order else list(range(24))
    torch.testing.assert_close(found.values().double(), gptq_oracle(weight, gram, found, order, 0.01))


@pytest.mark.parametrize("block", [1, 5, 24, 128])
def test_blocks_change_the_time_only(block: int) -> None:
    weight, rows = weights(16, 24), inputs(100, 24)
    gram = rows.T @ rows
    assert torch.equal(gptq(weight, gram, 4, block=block).codes, gptq(weight, gram, 4, block=9).codes)


def test_independent_inputs_give_round_to_nearest() -> None:
    weight = weights(16, 24)
    assert torch.equal(gptq(weight, torch.eye(24) * 3, 4, 8).codes, quantize(weight, 4, 8).codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [None, 32])
def test_better_than_rounding_on_inputs_that_it_has_not_seen(bits: int, group: int | None) -> None:
    weight, seen, fresh = weights(32, 64), inputs(400, 64), inputs(200, 64, seed=5)
    found = gptq(weight, seen.T @ seen, bits, group).values() - weight
    plain = quantize(weight, bits, group).values() - weight
    gram = fresh.T @ fresh
    assert output_error(found, gram) < 0.85 * output_error(plain, gram)
    assert output_error(found, gram) == pytest.approx(float((fresh @ found.T).double().square().sum()), rel=1e-4)


def test_inputs_that_never_occur_are_rounded_to_nearest() -> None:
    weight, rows = weights(8, 24), inputs(100, 24)
    rows[:, 5] = 0
    found = gptq(weight, rows.T @ rows, 4)
    nearest = torch.round(weight[:, 5] / found.scale[:, 0]) + found.zero[:, 0]  # type: ignore[index]
    assert torch.equal(found.codes[:, 5].float(), nearest.clamp(0, 15))
    assert bool(gptq(weight, torch.zeros(24, 24), 4).values().isfinite().all())


def test_fewer_inputs_than_columns() -> None:
    weight, rows = weights(8, 24), inputs(3, 24)
    found = gptq(weight, rows.T @ rows, 4).values()
    assert float((found - weight).abs().max()) < 2


def test_moments_that_are_not_finite() -> None:
    gram = torch.eye(24)
    gram[2, 2] = float("nan")
    with pytest.raises(torch.linalg.LinAlgError, match="finite"):
        gptq(weights(4, 24), gram, 4)
    with pytest.raises(torch.linalg.LinAlgError, match="inverted"):
        feedback(torch.tensor([[1.0, 1e9], [1e9, 1.0]], dtype=torch.float64), 0.01)


@pytest.mark.parametrize("ordered", [False, True])
def test_shares_and_a_diagonal_make_up_the_moments(ordered: bool) -> None:
    rows = inputs(100, 24)
    gram = (rows.T @ rows).double()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3)) if ordered else None
    shares = feedback(gram, 0.01, order)
    assert torch.equal(shares, shares.triu(1))
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    damped = damped if order is None else damped[order][:, order]
    unit = shares + torch.eye(24, dtype=torch.float64)
    between = torch.linalg.solve(unit, torch.linalg.solve(unit, damped).T)
    torch.testing.assert_close(between, between.diagonal().diag(), atol=1e-9, rtol=0)
    torch.testing.assert_close(unit @ between.diagonal().diag() @ unit.T, damped)
