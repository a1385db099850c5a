"""DTR and the other rules: the properties of the specification, on random and on extreme logits."""

from __future__ import annotations

import math

import pytest
import torch

from compresskit.numerics.temperatures import (
    automatic_k,
    band_temperature,
    dtkd_temperatures,
    entropy,
    entropy_spread,
    standardized_temperature,
    temperatures,
)


def logits(scale: float = 4.0, rows: int = 400, classes: int = 7, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (
        scale
        * torch.rand(rows, 1, generator=generator, dtype=torch.float64)
        * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    )


def one_peak(height: float) -> torch.Tensor:
    z = torch.zeros(1, 53, dtype=torch.float64)
    z[0, 0] = height
    return z


def test_entropy_by_hand() -> None:
    z = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [1e4, -1e4]])
    expected = [math.log(2.0), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), 0.0]
    assert entropy(z).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("height", "before", "after"), [(10, 0.0259, 0.026), (12, 0.0042, 0.026), (15, 0.0003, 0.058)])
def test_the_papers_k_brings_sharp_targets_into_a_narrow_band(height: float, before: float, after: float) -> None:
    z = one_peak(height)
    assert float(entropy(z)) == pytest.approx(before, abs=6e-5)
    teacher, _ = temperatures(z, 0.7, 0.45, 300)
    assert float(entropy(z, teacher)) == pytest.approx(after, abs=6e-4)


def test_zero_mu_is_no_temperature_and_zero_k_a_common_one() -> None:
    z = logits()
    assert all(torch.equal(t, torch.ones_like(t)) for t in temperatures(z, 0.0, 0.0, 0.5))
    teacher, student = temperatures(z, 0.7, -0.45, 0.0)
    assert torch.allclose(teacher, torch.full_like(teacher, 1.7))
    assert torch.allclose(student, torch.full_like(student, 0.55))


def test_targets_get_softer_and_more_so_the_sharper_they_are() -> None:
    z = logits()
    teacher, _ = temperatures(z, 0.7, 0.45, 0.5)
    before = entropy(z)
    assert (entropy(z, teacher) >= before - 1e-12).all()
    order = before.argsort()
    assert (teacher[order].diff() < 0).all(), "strictly falling in H"


def test_automatic_k_halves_the_effect_at_the_median() -> None:
    z = logits()
    k = automatic_k(z)
    assert math.exp(-k * float(entropy(z).median())) == pytest.approx(0.5)
    assert automatic_k(one_peak(13.0)) == pytest.approx(math.log(2) / float(entropy(one_peak(13.0))), rel=1e-6)
    padded = torch.cat([z, torch.zeros(4000, 7, dtype=torch.float64)])
    assert automatic_k(padded, torch.arange(4400) < 400) == pytest.approx(k)


def test_normalised_entropy_makes_k_independent_of_the_number_of_classes() -> None:
    few, many = torch.zeros(1, 2), torch.zeros(1, 500)
    first, second = (float(temperatures(z, 0.7, 0.0, 1.0, normalise=True)[0]) for z in (few, many))
    assert first == pytest.approx(second)
    assert first == pytest.approx(1 + 0.7 * math.exp(-1))


@pytest.mark.parametrize("name", ["mu_teacher", "mu_student"])
def test_a_temperature_stays_positive(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        temperatures(logits(), **{name: -1.0})  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.3), (0.05, 0.5), (0.4, 0.4)])
def test_the_band_is_reached_unless_capped_or_constant(low: float, high: float) -> None:
    z = torch.cat([logits(), logits(0.5, seed=1), logits(30.0, seed=2), torch.ones(3, 7, dtype=torch.float64)])
    found, capped = band_temperature(z, low, high)
    constant = z.amax(-1) == z.amin(-1)
    share = entropy(z, found) / math.log(7)
    fine = ~capped & ~constant
    assert fine.sum() > 900
    assert (share[fine] >= low - 1e-4).all()
    assert (share[fine] <= high + 1e-4).all()
    assert torch.equal(found[constant], torch.ones(3, dtype=torch.float64))
    again, _ = band_temperature((z / found.unsqueeze(-1))[fine], low - 1e-7, high + 1e-7)
    assert torch.equal(again, torch.ones_like(again)), "a second pass finds nothing to do"


def test_the_band_hardens_and_softens() -> None:
    soft, sharp = logits(0.2), logits(100.0)
    assert (band_temperature(soft, 0.05, 0.5)[0] < 1).float().mean() > 0.9
    assert (band_temperature(sharp, 0.3, 0.5)[0] > 1).float().mean() > 0.5


def test_entropy_rises_with_temperature_as_the_variance_says() -> None:
    z = logits(rows=20)
    t = torch.full((20,), 1.3, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(entropy(z, t).sum(), t)[0]
    p = (z / 1.3).softmax(-1)
    variance = (p * z**2).sum(-1) - (p * z).sum(-1) ** 2
    assert torch.allclose(slope, variance / 1.3**3, atol=1e-12)


def test_standardised_logits_have_unit_spread_whatever_shift_and_scale() -> None:
    z = logits(rows=30)
    for other in (z, 5 * z + 3):
        scaled = other / standardized_temperature(other, 1.0).unsqueeze(-1)
        assert torch.allclose(scaled.std(-1, correction=0), torch.ones(30, dtype=torch.float64))
    assert torch.allclose(
        (z / standardized_temperature(z).unsqueeze(-1)).softmax(-1),
        ((7 * z - 2) / standardized_temperature(7 * z - 2).unsqueeze(-1)).softmax(-1),
    )


def test_dtkd_sums_to_twice_the_base_and_is_even_for_equals() -> None:
    z, s = logits(rows=30), logits(rows=30, seed=5)
    teacher, student = dtkd_temperatures(z, s, 2.0)
    assert torch.allclose(teacher + student, torch.full_like(teacher, 4.0))
    assert torch.allclose(dtkd_temperatures(z, z, 2.0)[0], torch.full_like(teacher, 2.0))
    assert (dtkd_temperatures(10 * z, z)[0] > dtkd_temperatures(10 * z, z)[1]).all(), "the sharper side is softened"


def test_spread_of_a_sharp_teacher_is_narrower_under_dtr() -> None:
    z = torch.cat([one_peak(height) for height in torch.linspace(9, 16, 200).tolist()])
    teacher, _ = temperatures(z, 0.7, 0.0, 300)
    assert entropy_spread(z, teacher)["spread"] < entropy_spread(z, 1.7)["spread"]
    band, _ = band_temperature(z, 0.05, 0.1)
    assert entropy_spread(z, band)["spread"] < entropy_spread(z, 1.0)["spread"] / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_extremes_stay_finite(dtype: torch.dtype) -> None:
    z = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]], dtype=dtype)
    assert all(t.isfinite().all() for t in temperatures(z))
    assert band_temperature(z, 0.1, 0.5)[0].isfinite().all()
    assert standardized_temperature(z).isfinite().all()
