"""Codes of 1 to 8 bits, stored without gaps: code k of a row takes bits k b … k b + b - 1, the lowest first.

Bytes are filled from their lowest bit, each row starts a new byte, and what is left of its last byte is 0. For 4 bits
these are nibbles, the first code in the low half; ONNX Runtime's block-quantized operators read the same order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 1024


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of a row of ``count`` codes."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """(…, n) codes 0 … 2^b - 1 of any integer type as (…, ceil(n b / 8)) uint8."""
    if bits == 8:
        return codes.to(torch.uint8).contiguous()
    # Some rows at a time: on the way each code takes 16 bytes.
    rows = codes.flatten(0, -2) if codes.dim() > 1 else codes[None]
    packed = torch.empty(len(rows), packed_bytes(codes.shape[-1], bits), dtype=torch.uint8, device=codes.device)
    for start in range(0, len(rows), _ROWS):
        packed[start : start + _ROWS] = _pack_rows(rows[start : start + _ROWS], bits)
    return packed.reshape(*codes.shape[:-1], packed.shape[-1])


def _pack_rows(codes: Tensor, bits: int) -> Tensor:
    count = codes.shape[-1]
    # Eight codes fill b bytes exactly; fewer where b divides 8.
    step = _codes_at_once(bits)
    words = F.pad(codes, (0, -count % step)).to(torch.int64).unflatten(-1, (-1, step))
    word = (words << (bits * torch.arange(step, device=codes.device))).sum(-1, keepdim=True)
    parts = (word >> (8 * torch.arange(step * bits // 8, device=codes.device))) & 255
    return parts.to(torch.uint8).flatten(-2)[..., : packed_bytes(count, bits)].contiguous()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of ``pack``: (…, m) bytes as (…, ``count``) uint8 codes."""
    if bits == 8:
        return packed[..., :count]
    size = _codes_at_once(bits) * bits // 8
    mask = 2**bits - 1
    if size == 1:
        codes = torch.stack([(packed >> shift) & mask for shift in range(0, 8, bits)], -1)
        return codes.flatten(-2)[..., :count]
    chunks = F.pad(packed, (0, -packed.shape[-1] % size)).unflatten(-1, (-1, size))
    codes = torch.stack([_straddling(chunks, number * bits, bits, mask) for number in range(8)], -1)
    return codes.flatten(-2)[..., :count]


def _straddling(chunks: Tensor, begin: int, bits: int, mask: int) -> Tensor:
    """The code that begins at bit ``begin`` of each chunk (…, b); it may reach into the next byte."""
    byte, shift = divmod(begin, 8)
    code = chunks[..., byte] >> shift
    if shift + bits > 8:
        code = code | (chunks[..., byte + 1] << (8 - shift))
    return code & mask


def unpack_float(packed: Tensor, bits: int, count: int, *, whole_rows: bool = False) -> Tensor:
    """``unpack`` in float32, without shifts of bytes, which the ONNX exporter takes for signed ones; as exact.

    Args:
        whole_rows: all codes of a row on one axis from the start. That is faster where it is computed at each run, and
            keeps some numbers a column in the graph; otherwise the few codes of a chunk share them.
    """
    values = packed.float()
    if bits == 8:
        return values[..., :count]
    step = count if whole_rows else _codes_at_once(bits)
    size = packed_bytes(step, bits)
    if not whole_rows:
        values = F.pad(values, (0, -values.shape[-1] % size)).unflatten(-1, (-1, size))
    # All codes of a chunk at once: few operators, and few nodes in the graph of a layer.
    begins = [divmod(number * bits, 8) for number in range(step)]
    device = packed.device
    codes = values.index_select(-1, torch.tensor([byte for byte, _ in begins], device=device))
    if any(shift + bits > 8 for _, shift in begins):
        following = torch.tensor([min(byte + 1, size - 1) for byte, _ in begins], device=device)
        reach = torch.tensor([256.0 if shift + bits > 8 else 0.0 for _, shift in begins], device=device)
        codes = codes + reach * values.index_select(-1, following)
    codes = torch.floor(codes * torch.tensor([0.5**shift for _, shift in begins], device=device))
    codes = codes - 2.0**bits * torch.floor(codes * 0.5**bits)
    return codes if whole_rows else codes.flatten(-2)[..., :count]


def pack_float(codes: Tensor, bits: int) -> Tensor:
    """``pack`` of codes (…, n) in float32, for ``bits`` that divide 8: what the ONNX exporter knows of bytes."""
    size = 8 // bits
    chunks = F.pad(codes, (0, -codes.shape[-1] % size)).unflatten(-1, (-1, size))
    places = torch.tensor([2.0 ** (bits * number) for number in range(size)], device=codes.device)
    return (chunks * places).sum(-1).to(torch.uint8)


def _codes_at_once(bits: int) -> int:
    """How many codes fill whole bytes."""
    return 8 // bits if 8 % bits == 0 else 8


def pack_oracle(codes: list[int], bits: int) -> bytes:
    """``pack`` of one row, as one long number."""
    number = sum(code << (bits * index) for index, code in enumerate(codes))
    return number.to_bytes(packed_bytes(len(codes), bits), "little")
