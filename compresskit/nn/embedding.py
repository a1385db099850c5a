"""Lookup tables in 2 to 8 bits, and the output head that shares their codes."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from compresskit.errors import ModelError
from compresskit.nn import block_product
from compresskit.nn.base import exporting
from compresskit.nn.quantized import QuantizedLayer
from compresskit.numerics.grids import asymmetric, symmetric
from compresskit.numerics.packing import pack, packed_bytes, unpack, unpack_float
from compresskit.registry import register_layer

Bits = Literal[2, 3, 4, 5, 6, 7, 8]
# Rows of a table that a head dequantizes at once: they stay in the cache, and the whole table is never float.
_ROWS = 512
# ONNX Runtime's GatherBlockQuantized takes blocks of a power of two from here on.
_LEAST_BLOCK = 16


class _QuantizedTable(QuantizedLayer):
    """Codes of a (V, D) table: int8 and symmetric, or fewer bits with zero points; scales per group of a row."""

    keeps_dtype: ClassVar[frozenset[str]] = frozenset({"scale"})

    def __init__(self, rows: int, columns: int, bits: Bits, group: int | None) -> None:
        super().__init__()
        if not 2 <= bits <= 8 or (group is not None and columns % group):
            raise ValueError(f"no table of {columns} columns in {bits} bits with groups of {group}")
        self.rows, self.columns, self.bits, self.group = rows, columns, bits, group
        groups = 1 if group is None else columns // group
        if bits == 8:
            self.codes = nn.Parameter(torch.empty(rows, columns, dtype=torch.int8), requires_grad=False)
            self.scale = nn.Parameter(torch.empty(rows, groups, dtype=torch.float32), requires_grad=False)
            self.register_parameter("zero", None)
        else:
            packed, zeros = packed_bytes(columns, bits), packed_bytes(groups, bits)
            self.codes = nn.Parameter(torch.empty(rows, packed, dtype=torch.uint8), requires_grad=False)
            self.scale = nn.Parameter(torch.empty(rows, groups, dtype=torch.float16), requires_grad=False)
            self.zero = nn.Parameter(torch.empty(rows, zeros, dtype=torch.uint8), requires_grad=False)

    def fill(self, weight: Tensor) -> None:
        """Quantize ``weight`` (V, D) into the codes."""
        if self.bits == 8:
            grid = symmetric(weight, 8, self.group)
            self.codes.data, self.scale.data = grid.codes, grid.scale
            return
        grid = asymmetric(weight, self.bits, self.group, scale_dtype=torch.float16)
        self.codes.data, self.scale.data = pack(grid.codes, self.bits), grid.scale
        if grid.zero is not None and self.zero is not None:
            self.zero.data = pack(grid.zero, self.bits)

    def _values(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Float32 values of gathered rows: codes (…, ·), scale (…, G), zero (…, ·) or None.

        Of 4-bit codes they are rounded to float16, the type of the scales, as ONNX Runtime's lookup gives them.
        """
        scale = scale.float()
        groups = scale.shape[-1]
        if zero is None and groups == 1:
            return codes.float() * scale
        if zero is None:
            plain = codes.float().unflatten(-1, (groups, -1))
        else:
            read = partial(unpack_float, whole_rows=True) if exporting() else unpack
            steps = read(codes, self.bits, self.columns).float().unflatten(-1, (groups, -1))
            plain = steps - read(zero, self.bits, groups).float().unsqueeze(-1)
        values = (plain * scale.unsqueeze(-1)).flatten(-2)
        return values.to(torch.float16).float() if self.bits == 4 else values

    @property
    def weight(self) -> Tensor:
        return self.rows_between(0, self.rows)

    def rows_between(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop``, without, of what the codes stand for."""
        zero = None if self.zero is None else self.zero[start:stop]
        return self._values(self.codes[start:stop], self.scale[start:stop], zero).to(self.dtype)

    def parameter_count(self) -> int:
        return self.rows * self.columns

    def arguments(self) -> dict[str, Any]:
        return {"rows": self.rows, "columns": self.columns, "bits": self.bits, "group": self.group}

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.columns}, bits={self.bits}, group={self.group}"


@register_layer
class QuantizedEmbedding(_QuantizedTable):
    """An embedding table in 2 to 8 bits; a lookup dequantizes the rows that it gathers, and no others.

    Args:
        rows, columns: V, D.
        bits: 8 (symmetric, float32 scales), or less (zero points, float16 scales fitted by least squares).
        group: columns that share a scale; None is the whole row.
        padding_idx: as in ``nn.Embedding``; kept for code that asks for it.
    """

    kind: ClassVar[str] = "quantized_embedding"

    def __init__(
        self,
        rows: int,
        columns: int,
        bits: Bits,
        group: int | None = None,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__(rows, columns, bits, group)
        self.padding_idx = padding_idx

    @classmethod
    def from_table(cls, table: nn.Embedding, bits: Bits, group: int | None = None) -> QuantizedEmbedding:
        """Quantize ``table``.

        Raises:
            ModelError: CK-M050, if the table renormalises its rows as they are looked up.
        """
        if table.max_norm is not None:
            raise ModelError(
                "CK-M050",
                "the table renormalises rows as they are looked up, and codes can't be changed so",
                why=f"nn.Embedding has max_norm={table.max_norm}",
                fix="leave this table out, with `ignore`",
            )
        rows, columns = table.weight.shape
        layer = cls(rows, columns, bits, group, table.padding_idx).to(table.weight.device, table.weight.dtype)
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
        return (self.contrib_onnx if exporting() else self.looked_up)(ids)

    def contrib_onnx(self, ids: Tensor) -> Tensor:
        """The node for ONNX Runtime, which dequantizes the rows that it gathers; where it has none, plain ones."""
        group = self.columns if self.group is None else self.group
        if self.bits != 4 or group < _LEAST_BLOCK or group & (group - 1):
            return self.looked_up(ids)
        values = torch.onnx.ops.symbolic(
            "com.microsoft::GatherBlockQuantized",
            (self.codes, ids, self.scale, self.zero),
            {"bits": 4, "block_size": group, "gather_axis": 0, "quantize_axis": 1},
            dtype=self.scale.dtype,
            shape=(*ids.shape, self.columns),
            version=1,
        )
        return values.to(self.dtype)

    def looked_up(self, ids: Tensor) -> Tensor:
        """The rows of ``ids``, in operators that every runtime has."""
        look = torch.nn.functional.embedding
        zero = None if self.zero is None else look(ids, self.zero)
        values = self._values(look(ids, self.codes), look(ids, self.scale), zero)
        return values.to(self.dtype)

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "padding_idx": self.padding_idx}


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
        if exporting():
            return self.nodes(x)
        rows = x.reshape(-1, self.columns)
        if torch.is_grad_enabled() and rows.requires_grad:
            result = cast(Tensor, _TableProduct.apply(rows, self))
        else:
            result = self.product(rows)
        result = result.reshape(*x.shape[:-1], self.rows)
        return result if self.bias is None else result + self.bias

    def nodes(self, x: Tensor) -> Tensor:
        """The nodes of the ONNX file for any number of tokens: the table is dequantized when a session is made."""
        return torch.nn.functional.linear(x, self.weight.to(x.dtype), self.bias)

    def step_onnx(self, x: Tensor) -> Tensor:
        """The node for few tokens: integer products with the codes, which the lookup may share; else a float one."""
        block = block_product.block_for(self.columns if self.group is None else self.group)
        if self.bits == 8 and self.group is None and self.columns % block_product.BLOCK == 0:
            result = block_product.node(x, self.codes, self.scale)
        elif self.bits == 4 and block is not None:
            packed = (self.codes, self.scale, self.zero)
            result = block_product.grouped(x, *packed, 4, block, block_product.INTEGER)
        else:
            return torch.nn.functional.linear(x, self.weight.to(x.dtype), self.bias)
        result = result.to(x.dtype)
        return result if self.bias is None else result + self.bias

    def product(self, x: Tensor) -> Tensor:
        """x Wᵀ, (N, D) -> (N, V), in the dtype of ``x``."""
        result = x.new_empty(x.shape[0], self.rows)
        for part in self._parts():
            result[:, part] = x @ self._slice(part).to(x.dtype).T
        return result

    def back(self, gradient: Tensor) -> Tensor:
        """g W, (N, V) -> (N, D): the gradient for the input of ``product``."""
        result = gradient.new_zeros(gradient.shape[0], self.columns)
        for part in self._parts():
            result += gradient[:, part] @ self._slice(part).to(gradient.dtype)
        return result

    def _parts(self) -> list[slice]:
        return [slice(start, start + _ROWS) for start in range(0, self.rows, _ROWS)]

    def _slice(self, part: slice) -> Tensor:
        return self._values(self.codes[part], self.scale[part], None if self.zero is None else self.zero[part])

    def parameter_count(self) -> int:
        return super().parameter_count() + (0 if self.bias is None else self.bias.numel())

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "bias": self.bias is not None}


class _TableProduct(torch.autograd.Function):
    """``QuantizedHead.product``; for the gradient the rows are dequantized again instead of being kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: QuantizedHead) -> Tensor:
        ctx.head = head
        return head.product(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.head.back(gradients[0]), None
