"""LLM.int8() against a loop, and what outliers are for."""

from __future__ import annotations

import pytest
import torch

from compresskit.numerics.grids import symmetric
from compresskit.numerics.mixed_int8 import linear, linear_oracle, outlier_columns


def inputs(outliers: int) -> torch.Tensor:
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(0))
    x[2, :outliers] = 40.0
    return x


@pytest.mark.parametrize("outliers", [0, 1, 3, 24])
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_against_the_loop(outliers: int, threshold: float) -> None:
    x, grid = inputs(outliers), symmetric(torch.randn(5, 24), 8)
    found = linear(x, grid.codes, grid.scale.reshape(-1), torch.ones(5), threshold)
    expected = linear_oracle(x, grid.codes, grid.scale.reshape(-1), threshold) + 1
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_columns_by_hand() -> None:
    x = torch.tensor([[1.0, -6.0, 5.9], [0.0, 0.0, 6.1]])
    assert outlier_columns(x, 6.0).tolist() == [False, True, True]
    assert not outlier_columns(x, 0.0).any()


def test_one_outlier_would_drown_its_row() -> None:
    x, weight = inputs(1), torch.randn(5, 24)
    grid = symmetric(weight, 8)
    exact = x @ grid.values().T
    errors = [
        float((linear(x, grid.codes, grid.scale.reshape(-1), None, threshold) - exact)[2].abs().mean())
        for threshold in (6.0, 0.0)
    ]
    assert errors[0] < errors[1] / 3


def test_rows_of_zeros_and_no_rows() -> None:
    grid = symmetric(torch.randn(5, 24), 8)
    assert not linear(torch.zeros(3, 24), grid.codes, grid.scale.reshape(-1), None, 6.0).any()
    assert linear(torch.zeros(0, 24), grid.codes, grid.scale.reshape(-1), None, 6.0).shape == (0, 5)
