"""The blocks in which int8 rows are multiplied: as large as ONNX Runtime likes them, and divisors of the columns."""

from __future__ import annotations

import pytest
import torch

from compresskit.nn.block_product import block_for, largest
from compresskit.nn.packed import PackedLinear
from compresskit.numerics.rtn import quantize


@pytest.mark.parametrize(("columns", "block"), [(768, 128), (3072, 128), (192, 64), (96, 32), (48, None), (172, None)])
def test_the_largest_block_that_divides(columns: int, block: int | None) -> None:
    assert largest(columns) == block


@pytest.mark.parametrize(("span", "block"), [(16, 16), (48, None), (96, 32), (256, 256), (512, 128), (4096, 128)])
def test_onnx_runtime_takes_no_block_above_256(span: int, block: int | None) -> None:
    assert block_for(span) == block


@pytest.mark.parametrize(
    ("options", "block"),
    [
        ({"bits": 8}, 128),
        ({"bits": 8, "symmetric": True}, 128),
        ({"bits": 4, "symmetric": True}, 128),
        ({"bits": 4, "group": 32}, 32),
        ({"bits": 4}, 128),
        ({"bits": 3, "group": 32}, None),
    ],
)
def test_a_scale_of_a_row_is_repeated_for_large_blocks(options: dict[str, int], block: int | None) -> None:
    codes = quantize(torch.randn(4, 384), **options)  # type: ignore[arg-type]
    assert PackedLinear.from_codes(codes, None, torch.float32)._block() == block
