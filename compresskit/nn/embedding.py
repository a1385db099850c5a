"""Lookup tables in 8 or 4 bits, and the output head that shares their codes."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from compresskit.nn.base import CompressedLayer
from compresskit.numerics.grids import asymmetric, pack_nibbles, symmetric, unpack_nibbles
from compresskit.registry import register_layer

Bits = Literal[4, 8]


class _QuantizedTable(CompressedLayer):
    """Codes of a (V, D) table: int8 and symmetric, or packed 4-bit with zero points; scales per group of a row."""

    keeps_dtype: ClassVar[frozenset[str]] = frozenset({"scale"})

    def __init__(self, rows: int, columns: int, bits: Bits, group: int | None) -> None:
        super().__init__()
        self.rows, self.columns, self.bits, self.group = rows, columns, bits, group
        groups = 1 if group is None else columns // group
        if bits == 8:
            self.codes = nn.Parameter(torch.empty(rows, columns, dtype=torch.int8), requires_grad=False)
            self.scale = nn.Parameter(torch.empty(rows, groups, dtype=torch.float32), requires_grad=False)
            self.register_parameter("zero", None)
        else:
            packed, zeros = (columns + 1) // 2, (groups + 1) // 2
            self.codes = nn.Parameter(torch.empty(rows, packed, dtype=torch.uint8), requires_grad=False)
            self.scale = nn.Parameter(torch.empty(rows, groups, dtype=torch.float16), requires_grad=False)
            self.zero = nn.Parameter(torch.empty(rows, zeros, dtype=torch.uint8), requires_grad=False)

    def fill(self, weight: Tensor) -> None:
        """Quantize ``weight`` (V, D) into the codes."""
        if self.bits == 8:
            grid = symmetric(weight, 8, self.group)
            self.codes.data, self.scale.data = grid.codes, grid.scale
            return
        grid = asymmetric(weight, 4, self.group, scale_dtype=torch.float16)
        self.codes.data, self.scale.data = pack_nibbles(grid.codes), grid.scale
        if grid.zero is not None and self.zero is not None:
            self.zero.data = pack_nibbles(grid.zero)

    def _values(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Float32 values of gathered rows: codes (…, ·), scale (…, G), zero (…, ·) or None."""
        scale = scale.float()
        groups = scale.shape[-1]
        if zero is None:
            plain = codes.float().unflatten(-1, (groups, -1))
        else:
            nibbles = unpack_nibbles(codes, self.columns).float().unflatten(-1, (groups, -1))
            plain = nibbles - unpack_nibbles(zero, groups).float().unsqueeze(-1)
        return (plain * scale.unsqueeze(-1)).flatten(-2)

    @property
    def weight(self) -> Tensor:
        return self._values(self.codes, self.scale, self.zero)

    def parameter_count(self) -> int:
        return self.rows * self.columns

    def arguments(self) -> dict[str, Any]:
        return {"rows": self.rows, "columns": self.columns, "bits": self.bits, "group": self.group}

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.columns}, bits={self.bits}, group={self.group}"


@register_layer
class QuantizedEmbedding(_QuantizedTable):
    """An embedding table in 8 or 4 bits; a lookup dequantizes the rows that it gathers, and no others.

    Args:
        rows, columns: V, D.
        bits: 8 (symmetric, float32 scales) or 4 (zero points, float16 scales fitted by least squares).
        group: columns that share a scale; None is the whole row.
        padding_idx: as in ``nn.Embedding``.
        dtype: of the result, as the model computes.
    """

    kind: ClassVar[str] = "quantized_embedding"

    def __init__(
        self,
        rows: int,
        columns: int,
        bits: Bits,
        group: int | None = None,
        padding_idx: int | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(rows, columns, bits, group)
        self.padding_idx, self.dtype = padding_idx, dtype

    @classmethod
    def from_table(cls, table: nn.Embedding, bits: Bits, group: int | None = None) -> QuantizedEmbedding:
        """Quantize ``table``."""
        rows, columns = table.weight.shape
        dtype = str(table.weight.dtype).removeprefix("torch.")
        layer = cls(rows, columns, bits, group, table.padding_idx, dtype).to(table.weight.device)
        layer.fill(table.weight.detach())
        return layer

    @property
    def num_embeddings(self) -> int:
        """V, as ``nn.Embedding`` calls it."""
        return self.rows

    @property
    def embedding_dim(self) -> int:
        """D, as ``nn.Embedding`` calls it."""
        return self.columns

    def forward(self, ids: Tensor) -> Tensor:
        look = torch.nn.functional.embedding
        zero = None if self.zero is None else look(ids, self.zero)
        values = self._values(look(ids, self.codes), look(ids, self.scale), zero)
        return values.to(getattr(torch, self.dtype))

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "padding_idx": self.padding_idx, "dtype": self.dtype}


@register_layer
class QuantizedHead(_QuantizedTable):
    """An output head whose weights are a quantized table, usually the very codes of the embedding it is tied to.

    Args:
        rows, columns: V, D.
        bits, group: as in ``QuantizedEmbedding``.
        bias: whether there is one.
    """

    kind: ClassVar[str] = "quantized_head"

    def __init__(self, rows: int, columns: int, bits: Bits, group: int | None = None, bias: bool = False) -> None:
        super().__init__(rows, columns, bits, group)
        self.bias = nn.Parameter(torch.empty(rows)) if bias else None

    @property
    def out_features(self) -> int:
        """V, as ``nn.Linear`` calls it."""
        return self.rows

    @property
    def in_features(self) -> int:
        """D, as ``nn.Linear`` calls it."""
        return self.columns

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight.to(x.dtype), self.bias)

    def parameter_count(self) -> int:
        return super().parameter_count() + (0 if self.bias is None else self.bias.numel())

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "bias": self.bias is not None}
