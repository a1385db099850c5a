"""Grids of keys and values in a cache: codes with a float16 scale and a float16 least value for each group.

KIVI (Liu et al. 2024, arXiv 2402.02750): a channel of the keys has its outliers in every token, so keys are grouped
along tokens, channel by channel; values have none, so they are grouped along channels, token by token.

Shapes: B batch, H key-value heads, T tokens, D head dimension, g of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compresskit.numerics.packing import pack, packed_bytes, unpack

SCALE_BYTES = 2
_HALF_STEP, _HALF_LEAST = 2.0**-10, 2.0**-24


@dataclass(frozen=True)
class Stored:
    """Keys or values of T tokens: x ≈ low + scale · code, by groups.

    Args:
        codes: (B, H, T, D b / 8) uint8, packed along the channels.
        scale, low: float16; (B, H, T / g, D) of keys, (B, H, T, D / g) of values.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All three."""
        return self.codes, self.scale, self.low

    @property
    def bytes(self) -> int:
        """That are kept."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def rows(self, index: Tensor) -> Stored:
        """The batch's rows ``index``, in that order."""
        return Stored(*(tensor.index_select(0, index.to(tensor.device)) for tensor in self.tensors()))

    def followed_by(self, other: Stored) -> Stored:
        """The tokens of both, one after the other."""
        pairs = zip(self.tensors(), other.tensors(), strict=True)
        return Stored(*(torch.cat(pair, dim=2) for pair in pairs))


def store_keys(keys: Tensor, bits: int, group: int) -> Stored:
    """``keys`` (B, H, T, D) by channels; ``group`` tokens share a scale, and it must divide T."""
    parts = keys.float().unflatten(2, (-1, group)).transpose(-1, -2)
    codes, scale, low = _fit(parts, bits)
    return Stored(pack(codes.transpose(-1, -2).flatten(2, 3), bits), scale, low)


def store_values(values: Tensor, bits: int, group: int) -> Stored:
    """``values`` (B, H, T, D) by tokens; ``group`` channels share a scale, and it must divide D."""
    codes, scale, low = _fit(values.float().unflatten(3, (-1, group)), bits)
    return Stored(pack(codes.flatten(3), bits), scale, low)


def load_keys(stored: Stored, bits: int, dtype: torch.dtype) -> Tensor:
    """What ``store_keys`` kept, (B, H, T, D)."""
    groups, channels = stored.scale.shape[2], stored.scale.shape[3]
    codes = unpack(stored.codes, bits, channels).float().unflatten(2, (groups, -1))
    return (codes * stored.scale.unsqueeze(3).float() + stored.low.unsqueeze(3).float()).flatten(2, 3).to(dtype)


def load_values(stored: Stored, bits: int, dtype: torch.dtype) -> Tensor:
    """What ``store_values`` kept, (B, H, T, D)."""
    count = stored.codes.shape[3] * 8 // bits
    codes = unpack(stored.codes, bits, count).float().unflatten(3, (stored.scale.shape[3], -1))
    return (codes * stored.scale.unsqueeze(4).float() + stored.low.unsqueeze(4).float()).flatten(3).to(dtype)


def bytes_per_token(heads: int, dim: int, bits: int, key_group: int, value_group: int) -> float:
    """Of keys and values of one token in one layer, scales included."""
    codes = 2 * packed_bytes(dim, bits)
    return heads * (codes + 2 * SCALE_BYTES * (dim / key_group + dim / value_group))


def _fit(parts: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of ``parts`` (…, g), scales and least values (…,): the range holds all, so the error is at most s / 2."""
    top = 2**bits - 1
    low = _half(parts.amin(-1), upwards=False)
    scale = _half((parts.amax(-1) - low.float()) / top, upwards=True)
    divisor = torch.where(scale > 0, scale.float(), torch.ones_like(scale, dtype=torch.float32)).unsqueeze(-1)
    codes = torch.round((parts - low.float().unsqueeze(-1)) / divisor).clamp(0, top)
    return codes.to(torch.uint8), scale, low


def _half(values: Tensor, *, upwards: bool) -> Tensor:
    """``values`` in float16, never below them with ``upwards``, never above them without."""
    narrow = values.half()
    sign = 1.0 if upwards else -1.0
    moved = (values + sign * (values.abs() * _HALF_STEP + _HALF_LEAST)).half()
    return torch.where(sign * (narrow.float() - values) < 0, moved, narrow)
