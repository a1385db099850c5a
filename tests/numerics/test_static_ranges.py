"""Fixed ranges and smoothing scales: what each rule promises."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from compresskit.numerics import static_ranges
from compresskit.numerics.static_ranges import RangeRule


@pytest.mark.parametrize("rule", get_args(RangeRule))
@pytest.mark.parametrize("values", [torch.zeros(4, 3), torch.full((4, 3), 2.5), torch.full((4, 3), -1.0)], ids=str)
def test_constant_samples_are_kept(rule: RangeRule, values: torch.Tensor) -> None:
    low, high = static_ranges.observed_range(values, rule)
    scale, zero = static_ranges.affine(low, high)
    assert scale > 0
    assert 0 <= zero <= 255
    torch.testing.assert_close(static_ranges.rounded(values, scale, zero), values, rtol=1e-5, atol=1e-6)


def test_zero_is_exact_and_the_ends_are_reached() -> None:
    scale, zero = static_ranges.affine(-1.3, 4.7)
    ends = torch.tensor([-1.3, 0.0, 4.7])
    found = static_ranges.codes(ends, scale, zero)
    assert found.tolist() == [0.0, float(zero), 255.0]
    assert static_ranges.rounded(torch.zeros(1), scale, zero).item() == 0.0
    assert static_ranges.affine(1.0, 3.0) == static_ranges.affine(0.0, 3.0), "a range is widened to hold 0"


def test_searched_range_rounds_better_than_all_of_it_with_an_outlier() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 16, generator=generator)
    x[0, 0] = 60.0

    def error(rule: RangeRule) -> float:
        scale, zero = static_ranges.affine(*static_ranges.observed_range(x, rule))
        return float((static_ranges.rounded(x, scale, zero) - x).flatten()[1:].square().mean())

    assert error("mse") < error("minmax")
    assert error("entropy") < error("minmax")
    low, high = static_ranges.observed_range(x, "percentile", 0.99)
    assert float(((x < low) | (x > high)).double().mean()) == pytest.approx(0.01, abs=2e-3)


def test_smoothing_changes_no_product_and_evens_the_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 24, generator=generator), torch.randn(8, 24, generator=generator)
    x[:, 5] *= 40
    scale = static_ranges.smoothing(x.abs().amax(0), weight.abs().amax(0), 0.8)
    torch.testing.assert_close((x / scale) @ (weight * scale).T, x @ weight.T, rtol=1e-4, atol=1e-4)
    before, after = x.abs().amax(0), (x / scale).abs().amax(0)
    assert float(after.max() / after.median()) < 0.2 * float(before.max() / before.median())
    # α = 1 moves all of it: every channel is as large as any other.
    whole = static_ranges.smoothing(before, weight.abs().amax(0), 1.0)
    moved = (x / whole).abs().amax(0)
    assert float(moved.max() / moved.min()) == pytest.approx(1.0, rel=1e-4)


def test_unused_channels_stay_as_they_are() -> None:
    activations, weights = torch.tensor([0.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 2.0])
    scale = static_ranges.smoothing(activations, weights, 0.5)
    assert scale[:2].tolist() == [1.0, 1.0]
    assert bool(scale.isfinite().all())
    assert static_ranges.smoothing(torch.zeros(3), weights, 0.5).tolist() == [1.0, 1.0, 1.0]


def test_powers_of_two_are_exact_and_nearest() -> None:
    scale = torch.tensor([1.0, 0.75, 1.4, 1.5, 0.3, 1e-6, 40.0])
    found = static_ranges.powers_of_two(scale)
    assert torch.equal(found, 2.0 ** scale.double().log2().round().float())
    assert bool((torch.frexp(found).mantissa == 0.5).all())
