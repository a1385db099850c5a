"""The one node that multiplies a few tokens by int8 weights without unpacking them: ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compresskit.numerics.packing import pack_float, unpack_float

BLOCK = 32
"""Columns that must share a scale at least."""

BLOCKS = (128, 64, BLOCK)
"""Blocks that are tried where a row has one scale: at 128, ONNX Runtime needs half the time that it needs at 32."""
_SIZES = (16, 32, 64, 128, 256)
"""Blocks that ONNX Runtime takes at all."""
_MIDDLE = 128
INTEGER = 4
"""Accuracy level with activations in int8, a scale for each block of a token; 1 computes in float32."""


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
    return _node(x, (unsigned, scales), 8, block, INTEGER)


def largest(columns: int) -> int | None:
    """The largest of ``BLOCKS`` that divides ``columns``, or None."""
    return next((block for block in BLOCKS if columns % block == 0), None)


def block_for(span: int) -> int | None:
    """The block in which columns are multiplied of which ``span`` share a scale; None: the node can't do it."""
    return span if span in _SIZES else largest(span)


def grouped(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, block: int, accuracy: int
) -> Tensor:
    """x Wᵀ, (…, I) -> (…, O) float32, of codes of 2, 4 or 8 bits with scales for groups of columns.

    Where a group is longer than ``block``, its scale and zero point are repeated, once, when the session is made.

    Args:
        codes: (O, I b / 8) packed.
        scale: (O, G) or (1, 1).
        zero: None, packed codes (O, ⌈G b / 8⌉) or (1, 1), or floats like ``scale``.
        block: ``block_for(I / G)``.
        accuracy: ``INTEGER`` or 1.
    """
    rows, groups = codes.shape[0], scale.shape[1]
    blocks = x.shape[-1] // block
    inputs = (codes.reshape(rows, blocks, -1), _spread(scale.float(), rows, blocks))
    if zero is None:
        return _node(x, inputs, bits, block, accuracy)
    if zero.is_floating_point():
        zeros = _spread(zero.float(), rows, blocks)
    elif blocks == groups:
        zeros = zero.reshape(-1)
    else:
        repeated = _spread(unpack_float(zero, bits, groups), rows, blocks).reshape(rows, blocks)
        zeros = pack_float(repeated, bits).reshape(-1)
    return _node(x, (*inputs, zeros), bits, block, accuracy)


def _spread(values: Tensor, rows: int, blocks: int) -> Tensor:
    """``values`` (O, G) or (1, 1), each for all blocks of its group: (O x blocks,)."""
    times = blocks // values.shape[1]
    if times > 1:
        values = values.unsqueeze(-1).expand(-1, -1, times).flatten(1)
    return values.expand(rows, blocks).reshape(-1)


def _node(x: Tensor, weights: tuple[Tensor, ...], bits: int, block: int, accuracy: int) -> Tensor:
    """The bare node, for codes (O, blocks, bytes of a block), scales (O x blocks,), perhaps packed zero points."""
    rows = weights[0].shape[0]
    settings: dict[str, Any] = {"K": x.shape[-1], "N": rows, "bits": bits, "block_size": block}
    return torch.onnx.ops.symbolic(
        "com.microsoft::MatMulNBits",
        (x.float(), *weights),
        {**settings, "accuracy_level": accuracy},
        dtype=torch.float32,
        shape=(*x.shape[:-1], rows),
        version=1,
    )
