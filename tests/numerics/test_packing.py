from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compresskit.numerics import packing
from compresskit.numerics.grids import pack_nibbles


@given(bits=st.integers(1, 8), count=st.integers(1, 41), seed=st.integers(0, 1000))
def test_packed_without_gaps_and_back(bits: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (3, count), generator=generator, dtype=torch.uint8)
    packed = packing.pack(codes, bits)
    assert packed.shape == (3, packing.packed_bytes(count, bits))
    for row, found in zip(codes.tolist(), packed, strict=True):
        assert bytes(found.tolist()) == packing.pack_oracle(row, bits)
    assert torch.equal(packing.unpack(packed, bits, count), codes)
    for whole_rows in (False, True):
        assert torch.equal(packing.unpack_float(packed, bits, count, whole_rows=whole_rows), codes.float())
    if 8 % bits == 0:
        assert torch.equal(packing.pack_float(codes.float(), bits), packed)


def test_four_bits_are_nibbles() -> None:
    codes = torch.randint(0, 16, (5, 7))
    assert torch.equal(packing.pack(codes, 4), pack_nibbles(codes))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_leading_axes(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (2, 3, 10))
    assert torch.equal(packing.unpack(packing.pack(codes, bits), bits, 10), codes.to(torch.uint8))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (5,), (2, 3, 5), (4097, 5)])
def test_any_number_of_rows_is_packed(shape: tuple[int, ...]) -> None:
    codes = torch.randint(0, 8, shape, generator=torch.Generator().manual_seed(0))
    packed = packing.pack(codes, 3)
    assert packed.shape == (*shape[:-1], packing.packed_bytes(shape[-1], 3))
    assert torch.equal(packing.unpack(packed, 3, shape[-1]), codes)
