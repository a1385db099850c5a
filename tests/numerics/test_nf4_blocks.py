from __future__ import annotations

import torch

from compresskit.numerics.lookup import normal_float
from compresskit.numerics.nf4_blocks import nested_scales, nibbles, values


def test_the_upper_half_of_a_byte_comes_first() -> None:
    assert nibbles(torch.tensor([[0x1F], [0xA0]], dtype=torch.uint8)).tolist() == [1, 15, 10, 0]


def test_blocks_run_through_the_flattened_matrix() -> None:
    """Five weights in blocks of two: the second block spans two rows, the last is half full."""
    packed = torch.tensor([0xF0, 0xF7, 0xF0], dtype=torch.uint8)
    levels = normal_float()
    found = values(packed, levels, torch.tensor([1.0, 2.0, 4.0]), 2, (1, 5))
    assert found.tolist() == [[1.0, -1.0, 2.0, 0.0, 4.0]]
    assert values(packed, levels, torch.tensor([1.0, 2.0, 4.0]), 2, (5, 1)).T.tolist() == found.tolist()


def test_scales_of_scales() -> None:
    codes = torch.zeros(300, dtype=torch.uint8)
    codes[-1] = 2
    found = nested_scales(codes, torch.tensor([2.0, 10.0]), torch.tensor([0.5, 0.0, -0.1]), torch.tensor([3.0]))
    assert found[[0, 255, 256, 299]].tolist() == [4.0, 4.0, 8.0, 2.0]
