from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compresskit.numerics import hqq
from compresskit.numerics.rtn import quantize


def heavy(rows: int = 32, columns: int = 128) -> Tensor:
    """Weights with outliers."""
    torch.manual_seed(0)
    return torch.distributions.StudentT(4.0).sample((rows, columns)) * 0.05


def total(error: Tensor, power: float = hqq.POWER) -> float:
    return float(error.abs().double().pow(power).sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_better_than_rounding(bits: int) -> None:
    weight = heavy()
    found = hqq.hqq(weight, bits, 32).values() - weight
    for search in (False, True):
        plain = quantize(weight, bits, 32, search=search).values() - weight
        assert total(found) < total(plain)
        if not search:
            assert float(found.square().sum()) < float(plain.square().sum())


@pytest.mark.parametrize("bits", [2, 4])
def test_equals_the_oracle(bits: int) -> None:
    weight = heavy(6, 16)
    made = hqq.hqq(weight, bits, 16)
    found = (made.values() - weight).abs().double().pow(hqq.POWER).sum(1)
    for row, value in enumerate(weight):
        starts = [quantize(value[None], bits, 16, search=search) for search in (False, True)]
        lowest = min(
            hqq.hqq_oracle(value.tolist(), float(start.scale), int(start.zero), bits, hqq.POWER, hqq.STEPS)  # type: ignore[arg-type]
            for start in starts
        )
        assert float(found[row]) == pytest.approx(lowest, rel=2e-3)


def test_more_steps_are_never_worse() -> None:
    weight = heavy()
    errors = [total(hqq.hqq(weight, 3, 32, steps=steps).values() - weight) for steps in (0, 1, 5, 20)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_the_threshold_takes_small_errors_away() -> None:
    error = torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 2.0])
    found = hqq.shrink(error, 10.0, 0.7)
    assert found[1:4].abs().max() == 0
    assert float(found[4]) == pytest.approx(2 - 2**-0.3 / 10)
    assert torch.equal(found, -found.flip(0))


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0, 1e-8, 3e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_constant_groups_stay_finite(value: float, dtype: torch.dtype) -> None:
    weight = torch.full((2, 16), value)
    found = hqq.hqq(weight, 4, 8, scale_dtype=dtype).values()
    assert float((found - weight).abs().max()) <= 3e-3 * abs(value) + 1e-6
