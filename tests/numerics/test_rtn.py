from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compresskit.numerics import rtn


def weights(rows: int = 6, columns: int = 24, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(rows, 1, generator=generator) * 3
    return torch.randn(rows, columns, generator=generator) * spread + 0.1


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("group", [24, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_equals_the_oracle(bits: int, group: int, symmetric: bool) -> None:
    weight = weights()
    found = rtn.quantize(weight, bits, group, symmetric=symmetric, search=False)
    codes, scales, zeros = rtn.quantize_oracle(weight, bits, group, symmetric=symmetric)
    assert torch.equal(found.codes.double(), codes)
    torch.testing.assert_close(found.scale.double(), scales, rtol=1e-6, atol=0)
    assert found.zero is None if symmetric else torch.equal(found.zero.double(), zeros)  # type: ignore[union-attr]
    shift = zeros.repeat_interleave(group, 1)
    expected = scales.repeat_interleave(group, 1) * (codes - shift)
    torch.testing.assert_close(found.values().double(), expected, rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8), symmetric=st.booleans(), group=st.sampled_from([4, 16]))
def test_without_a_search_errors_are_at_most_half_a_step(seed: int, bits: int, symmetric: bool, group: int) -> None:
    weight = weights(4, 16, seed)
    found = rtn.quantize(weight, bits, group, symmetric=symmetric, search=False)
    error = (found.values() - weight).abs().reshape(4, -1, group)
    assert bool((error <= found.scale.abs()[..., None] * 0.5001).all())


@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8), symmetric=st.booleans(), half=st.booleans())
def test_a_search_is_never_worse(seed: int, bits: int, symmetric: bool, half: bool) -> None:
    weight = weights(4, 32, seed)
    dtype = torch.float16 if half else torch.float32
    errors = [
        rtn.quantize(weight, bits, 16, symmetric=symmetric, search=search, scale_dtype=dtype).values() - weight
        for search in (True, False)
    ]
    better, plain = (error.reshape(4, 2, 16).square().sum(-1) for error in errors)
    assert bool((better <= plain * (1 + 1e-5) + 1e-12).all())


def test_a_search_pays_at_few_bits() -> None:
    weight = weights(64, 128)
    for symmetric in (True, False):
        better, plain = (
            (rtn.quantize(weight, 3, 32, symmetric=symmetric, search=search).values() - weight).square().sum()
            for search in (True, False)
        )
        assert float(better) < 0.9 * float(plain)


def test_importance_moves_the_error_to_where_it_costs_less() -> None:
    weight, importance = weights(64, 64), torch.ones(64)
    importance[::8] = 100.0
    plain = rtn.quantize(weight, 3, 32).values() - weight
    moved = rtn.quantize(weight, 3, 32, importance=importance).values() - weight
    assert float((moved.square() * importance).sum()) < 0.9 * float((plain.square() * importance).sum())


@pytest.mark.parametrize("symmetric", [True, False])
def test_one_scale_for_the_matrix(symmetric: bool) -> None:
    weight = weights()
    found = rtn.quantize(weight, 8, symmetric=symmetric, whole=True)
    assert found.scale.shape == (1, 1)
    assert float((found.values() - weight).abs().max()) <= float(found.scale.abs()) * 2
    importance = torch.linspace(0.1, 1, 24)
    assert rtn.quantize(weight, 4, whole=True, importance=importance).codes.shape == weight.shape


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("value", [0.0, 0.37, -2.5, 1e-30, 1e-45, 3e38, -3e38])
def test_constant_groups_stay_finite(symmetric: bool, dtype: torch.dtype, value: float) -> None:
    weight = torch.full((2, 16), value)
    dtype = torch.float32 if abs(value) > 1e4 else dtype
    found = rtn.quantize(weight, 4, 8, symmetric=symmetric, scale_dtype=dtype)
    assert bool(found.values().isfinite().all())
    assert bool(found.scale.isfinite().all())
    allowed = 1e-4 if abs(value) < 1e-6 else 2e-3 * abs(value)
    assert float((found.values() - weight).abs().max()) <= allowed


def test_scales_that_half_precision_would_spoil_are_kept_in_single() -> None:
    assert rtn.scale_type(torch.full((2, 2), 0.5), 4) == torch.float16
    assert rtn.scale_type(torch.full((2, 2), 1e-5), 4) == torch.float32
    assert rtn.scale_type(torch.full((2, 2), 4e4), 4) == torch.float32
    assert rtn.scale_type(torch.zeros(2, 2), 4) == torch.float32
