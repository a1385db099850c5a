from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compresskit.numerics import grids


def weights(rows: int = 6, columns: int = 24, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(rows, 1, generator=generator) * 3
    return torch.randn(rows, columns, generator=generator) * spread + 0.1


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("group", [24, 8])
def test_symmetric_equals_the_oracle(bits: int, group: int) -> None:
    weight = weights()
    grid = grids.symmetric(weight, bits, group)
    codes, scales = grids.symmetric_oracle(weight, bits, group)
    assert torch.equal(grid.codes.double(), codes)
    torch.testing.assert_close(grid.scale.double(), scales, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("group", [24, 8])
def test_asymmetric_equals_the_oracle(bits: int, group: int) -> None:
    weight = weights()
    grid = grids.asymmetric(weight, bits, group, least_squares=False)
    codes, scales, zeros = grids.asymmetric_oracle(weight, bits, group)
    assert grid.zero is not None
    assert torch.equal(grid.codes.double(), codes)
    assert torch.equal(grid.zero.double(), zeros)
    torch.testing.assert_close(grid.scale.double(), scales, rtol=1e-6, atol=0)


@given(seed=st.integers(0, 10_000), bits=st.sampled_from([2, 4, 8]), half=st.booleans(), group=st.sampled_from([4, 16]))
def test_errors_are_at_most_half_a_step(seed: int, bits: int, half: bool, group: int) -> None:
    weight = weights(4, 16, seed)
    dtype = torch.float16 if half else torch.float32
    for grid in (
        grids.symmetric(weight, bits, group),
        grids.asymmetric(weight, bits, group, scale_dtype=dtype, least_squares=False),
    ):
        error = (grid.values() - weight).abs().reshape(4, -1, group)
        assert bool((error <= grid.scale.float()[..., None] * 0.50001).all())


@given(seed=st.integers(0, 10_000), bits=st.sampled_from([4, 8]))
def test_quantizing_again_changes_nothing(seed: int, bits: int) -> None:
    weight = weights(4, 16, seed)
    once = grids.symmetric(weight, bits, 8)
    assert torch.equal(grids.symmetric(once.values(), bits, 8).codes, once.codes)
    first = grids.asymmetric(weight, bits, 8, least_squares=False)
    again = grids.asymmetric(first.values(), bits, 8, least_squares=False)
    torch.testing.assert_close(again.values(), first.values(), rtol=1e-5, atol=1e-6)


def test_zero_rows_and_vanishing_ones_stay_finite() -> None:
    weight = torch.zeros(3, 8)
    weight[1] = 1e-44
    for grid in (grids.symmetric(weight, 8), grids.asymmetric(weight, 4, scale_dtype=torch.float16)):
        assert bool(torch.isfinite(grid.values()).all())
        assert float(grid.values().abs().max()) < 1e-6
        assert bool((grid.scale > 0).all())


def test_one_scale_for_the_whole_matrix() -> None:
    weight = weights()
    grid = grids.symmetric(weight, 8, whole=True)
    assert grid.scale.shape == (1, 1)
    assert float(grid.scale) == pytest.approx(float(weight.abs().max()) / 127)
    assert bool(((grid.values() - weight).abs() <= grid.scale * 0.50001).all())


def test_finer_groups_are_never_worse_at_their_worst() -> None:
    weight = weights(16, 64)
    coarse, fine = (grids.symmetric(weight, 4, group).values() - weight for group in (None, 8))
    assert float(fine.norm()) < float(coarse.norm())


def test_least_squares_lowers_the_squared_error_of_every_group() -> None:
    weight = weights(32, 64)
    plain = grids.asymmetric(weight, 4, 32, scale_dtype=torch.float16, least_squares=False)
    fitted = grids.asymmetric(weight, 4, 32, scale_dtype=torch.float16)
    before, after = ((grid.values() - weight).reshape(32, 2, 32).square().sum(-1) for grid in (plain, fitted))
    assert bool((after <= before * 1.000001).all())
    assert float(after.sum()) < 0.97 * float(before.sum())


def test_bf16_weights_are_computed_in_float32() -> None:
    weight = weights().bfloat16()
    assert torch.equal(grids.symmetric(weight, 8).codes, grids.symmetric(weight.float(), 8).codes)


@given(columns=st.integers(1, 9), rows=st.integers(0, 3), data=st.data())
def test_nibbles_come_back_bit_for_bit(columns: int, rows: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, 15), min_size=rows * columns, max_size=rows * columns))
    codes = torch.tensor(values, dtype=torch.uint8).reshape(rows, columns)
    packed = grids.pack_nibbles(codes)
    assert packed.shape == (rows, (columns + 1) // 2)
    assert packed.dtype == torch.uint8
    assert torch.equal(grids.unpack_nibbles(packed, columns), codes)


def test_the_first_code_lies_in_the_low_half() -> None:
    assert grids.pack_nibbles(torch.tensor([[1, 2, 3]])).tolist() == [[0x21, 0x03]]


def test_bits_per_weight() -> None:
    assert grids.bits_per_weight(4, 32, 16, 4) == 4.625
    assert grids.bits_per_weight(8, 384, 32) == pytest.approx(8 + 32 / 384)
