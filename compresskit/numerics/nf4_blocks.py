"""NormalFloat weights as bitsandbytes stores them: blocks of the flattened matrix, scales in a nonlinear 8-bit code.

Shapes: O rows, I columns, N = ⌈OI / block⌉ blocks, M = ⌈N / 256⌉ blocks of scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

NESTED_BLOCK = 256
"""Scales that share a scale."""


def nibbles(packed: Tensor) -> Tensor:
    """The codes of bytes (K,), two each, the upper half first: (2K,) float32. Written without shifts, for ONNX."""
    values = packed.reshape(-1).float()
    upper = torch.floor(values / 16)
    return torch.stack((upper, values - 16 * upper), 1).reshape(-1)


def nested_scales(codes: Tensor, scale: Tensor, levels: Tensor, offset: Tensor) -> Tensor:
    """Scales (N,) float32 of their codes (N,) uint8: level · the scale (M,) of their block + offset."""
    return levels[codes.long()] * _spread(scale, NESTED_BLOCK, codes.shape[0]) + offset


def values(packed: Tensor, levels: Tensor, scales: Tensor, block: int, shape: tuple[int, int]) -> Tensor:
    """The matrix (O, I) in float32 of packed codes, 16 ``levels``, and scales (N,) of its blocks."""
    count = shape[0] * shape[1]
    return (levels[nibbles(packed)[:count].long()] * _spread(scales, block, count)).reshape(shape)


def _spread(values: Tensor, block: int, count: int) -> Tensor:
    """Each of ``values`` ``block`` times; ``count`` of them."""
    return values[:, None].expand(-1, block).reshape(-1)[:count]
