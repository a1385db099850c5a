"""The one node that multiplies a few tokens by int8 weights without unpacking them: ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 32
"""Columns that must share a scale at least."""

BLOCKS = (128, 64, BLOCK)
"""Blocks that are tried where a row has one scale: at 128, ONNX Runtime needs half the time that it needs at 32."""
_MIDDLE = 128
# Activations in int8, a scale for each block of a token.
_INTEGER = 4


def node(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """x Wᵀ, (…, I) -> (…, O) float32, of symmetric int8 ``codes`` (O, I) with a scale a row (O,) or (O, 1).

    The file holds the int8 codes, which a table may share. MatMulNBits reads unsigned ones: ONNX Runtime moves them
    and repeats the scales for each block of a row once, when the session is made.

    Args:
        x: I a multiple of ``BLOCK``.
    """
    rows, columns = codes.shape
    block = largest(columns) or BLOCK
    blocks = columns // block
    unsigned = (codes.int() + _MIDDLE).to(torch.uint8).reshape(rows, blocks, block)
    scales = scale.float().reshape(rows, 1).expand(rows, blocks).reshape(-1)
    return blocks_of(x, unsigned, scales, None, rows, 8, block)


def largest(columns: int) -> int | None:
    """The largest of ``BLOCKS`` that divides ``columns``, or None."""
    return next((block for block in BLOCKS if columns % block == 0), None)


def blocks_of(
    x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, rows: int, bits: int, block: int
) -> Tensor:
    """The bare node, for ``codes`` (O, blocks, bytes of a block), scales (O x blocks,), packed zero points."""
    inputs = (x.float(), codes, scales) if zeros is None else (x.float(), codes, scales, zeros)
    settings: dict[str, Any] = {
        "K": x.shape[-1],
        "N": rows,
        "bits": bits,
        "block_size": block,
        "accuracy_level": _INTEGER,
    }
    return torch.onnx.ops.symbolic(
        "com.microsoft::MatMulNBits",
        inputs,
        settings,
        dtype=torch.float32,
        shape=(*x.shape[:-1], rows),
        version=1,
    )
