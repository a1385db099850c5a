from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compresskit.numerics.refit import dropped, massive, output_error, ridge_refit, typical_energy


def problem(rows: int = 400, inputs: int = 24, outputs: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated inputs (N, I) with a mean, a weight (O, I), and the kept half."""
    mixing = torch.randn(inputs, inputs, dtype=torch.float64) / inputs**0.5
    x = torch.randn(rows, inputs, dtype=torch.float64) @ mixing + 0.5
    return x, torch.randn(outputs, inputs, dtype=torch.float64), torch.arange(0, inputs, 2)


def moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    return x.T @ x, x.mean(0), len(x)


def by_rows(weight: Tensor, x: Tensor, keep: Tensor, strength: float, *, bias: bool) -> tuple[Tensor, Tensor]:
    """The oracle: an ordinary least-squares problem over tokens, the ridge as extra rows, one output at a time."""
    target = x @ weight.T
    kept = x[:, keep]
    shift_x, shift_y = kept.mean(0) * bias, target.mean(0) * bias
    pull = (strength * len(x)) ** 0.5 * torch.eye(len(keep), dtype=torch.float64)
    columns = []
    for row in range(len(weight)):
        design = torch.cat([kept - shift_x, pull])
        wanted = torch.cat([target[:, row] - shift_y[row], pull @ weight[row, keep]])
        columns.append(torch.linalg.lstsq(design, wanted[:, None]).solution[:, 0])
    fitted = torch.stack(columns)
    return fitted, shift_y - fitted @ shift_x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 0.03, 10.0])
def test_equals_least_squares_over_tokens(ridge: float, bias: bool) -> None:
    x, weight, keep = problem()
    centred = x - x.mean(0) if bias else x
    strength = ridge * typical_energy(centred.square().mean(0))
    expected, shift = by_rows(weight, x, keep, strength, bias=bias)
    found = ridge_refit(weight, *moments(x), keep, ridge=ridge, bias=bias)
    torch.testing.assert_close(found.weight, expected, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(found.bias_shift, shift if bias else torch.zeros_like(shift), rtol=1e-7, atol=1e-8)
    assert found.damping == ridge


@pytest.mark.parametrize("bias", [True, False])
def test_errors_are_those_over_tokens(bias: bool) -> None:
    x, weight, keep = problem()
    found = ridge_refit(weight, *moments(x), keep, bias=bias)
    target = x @ weight.T
    scale = target.square().mean().sqrt()
    before = (x[:, keep] @ weight[:, keep].T - target).square().mean().sqrt() / scale
    after = (x[:, keep] @ found.weight.T + found.bias_shift - target).square().mean().sqrt() / scale
    assert found.error_before == pytest.approx(float(before), rel=1e-9)
    assert found.error_after == pytest.approx(float(after), rel=1e-9)
    assert found.error_after < 0.8 * found.error_before


def test_is_better_on_other_tokens_too() -> None:
    x, weight, keep = problem(rows=800)
    fitting, other = x[:400], x[400:]
    found = ridge_refit(weight, *moments(fitting), keep)
    _, mean, count = moments(other)
    second = other.T @ other / count
    nothing = torch.zeros(len(weight), dtype=torch.float64)
    assert output_error(weight, found.weight, found.bias_shift, second, mean, keep) < 0.8 * output_error(
        weight, weight[:, keep], nothing, second, mean, keep
    )


def test_an_input_that_copies_a_dropped_one_takes_over() -> None:
    x, weight, _ = problem(inputs=6)
    x[:, 5] = 2 * x[:, 0]
    keep = torch.arange(1, 6)
    found = ridge_refit(weight, *moments(x), keep, ridge=1e-9)
    assert found.error_after < 1e-4
    torch.testing.assert_close(found.weight[:, -1], weight[:, 5] + weight[:, 0] / 2, rtol=1e-3, atol=1e-4)


def test_the_bias_takes_over_the_mean() -> None:
    x, weight, _ = problem(inputs=6)
    x[:, 0] = 3.0
    found = ridge_refit(weight, *moments(x), torch.arange(1, 6))
    torch.testing.assert_close(found.bias_shift, 3 * weight[:, 0])
    assert found.error_after < 1e-7 < found.error_before


def test_a_strong_ridge_leaves_the_weights_alone() -> None:
    x, weight, keep = problem()
    found = ridge_refit(weight, *moments(x), keep, ridge=1e9, bias=False)
    torch.testing.assert_close(found.weight, weight[:, keep], rtol=0, atol=1e-6)


def test_nothing_dropped_nothing_changed() -> None:
    x, weight, _ = problem()
    found = ridge_refit(weight, *moments(x), torch.arange(24))
    assert torch.equal(found.weight, weight)
    assert float(found.bias_shift.abs().max()) < 1e-12
    assert found.error_after == found.error_before < 1e-7


def test_a_singular_system_is_damped() -> None:
    x, weight, keep = problem(rows=5)
    x[:, keep] = x[:, keep[:1]]
    gram, mean, count = moments(x)
    gram = gram - 1e-9 * torch.eye(24, dtype=torch.float64)  # not even positive semidefinite, as rounding makes it
    found = ridge_refit(weight, gram, mean, count, keep, ridge=0.0)
    assert bool(torch.isfinite(found.weight).all())
    assert found.damping > 0
    assert found.error_after < found.error_before


def test_dead_inputs_are_left_as_they_are() -> None:
    weight = torch.randn(3, 8)
    nothing = torch.zeros(8, 8, dtype=torch.float64)
    found = ridge_refit(weight, nothing, nothing[0], 10, torch.arange(4))
    assert torch.equal(found.weight, weight[:, :4])
    assert (found.error_before, found.error_after, found.damping) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("where", ["weight", "gram"])
def test_what_is_not_finite_is_an_error_not_a_weight(where: str) -> None:
    x, weight, keep = problem()
    gram, mean, count = moments(x)
    (weight if where == "weight" else gram)[1, 1] = torch.nan
    with pytest.raises(torch.linalg.LinAlgError, match="finite"):
        ridge_refit(weight, gram, mean, count, keep)


def test_a_hopeless_system_is_an_error() -> None:
    x, weight, keep = problem()
    gram, mean, count = moments(x)
    gram[0, 0] = -1e30
    with pytest.raises(torch.linalg.LinAlgError, match="inverted"):
        ridge_refit(weight, gram, mean, count, keep, bias=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_result_is_in_the_type_of_the_weight_and_never_worse(dtype: torch.dtype) -> None:
    x, weight, keep = problem()
    found = ridge_refit(weight.to(dtype), *moments(x), keep)
    assert found.weight.dtype == dtype
    assert found.error_after < found.error_before


def test_a_refit_that_rounding_makes_worse_is_left_away() -> None:
    """The dropped input is so faint that no correction survives bfloat16."""
    x, weight, _ = problem(inputs=6)
    x[:, 0] *= 1e-6
    half = weight.bfloat16()
    found = ridge_refit(half, *moments(x), torch.arange(1, 6), bias=False)
    assert torch.equal(found.weight, half[:, 1:])
    assert found.error_after == found.error_before
    assert found.damping == 0.0


def test_massive_inputs() -> None:
    energy = torch.ones(1000)
    assert massive(energy).tolist() == []
    energy[[3, 700]] = 30.0
    assert massive(energy).tolist() == [3, 700]
    few = torch.ones(20)
    few[4] = 5.0
    assert massive(few).tolist() == [], "a fifth of the energy is nothing special among twenty"
    assert massive(torch.zeros(4)).tolist() == []


def test_typical_energy_leaves_massive_inputs_out() -> None:
    energy = torch.ones(1000)
    energy[5] = 1e6
    assert typical_energy(energy) == 1.0


def test_dropping_a_massive_input_is_what_hurts_a_refit() -> None:
    """Kept, the refit is good elsewhere; dropped, the others are blown up to imitate it: why it is pinned."""
    x, weight, _ = problem(rows=60, inputs=40)
    x[:, 0] = 60.0 + torch.randn(60, dtype=torch.float64)
    with_it = ridge_refit(weight, *moments(x), torch.arange(0, 20), ridge=1e-3, bias=False)
    without = ridge_refit(weight, *moments(x), torch.arange(1, 21), ridge=1e-3, bias=False)
    assert without.weight.norm() > 2 * with_it.weight.norm()


def test_dropped() -> None:
    assert dropped(torch.tensor([1, 3]), 5).tolist() == [0, 2, 4]
