"""A linear layer whose weights are stored in 2 to 8 bits, without gaps, and used as floats."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresskit.nn import block_product
from compresskit.nn.base import exporting
from compresskit.nn.lazy import lazy
from compresskit.nn.quantized import QuantizedLayer, frozen
from compresskit.numerics.packing import pack, packed_bytes, unpack, unpack_float
from compresskit.numerics.rtn import Codes, dequantize
from compresskit.registry import register_layer

Zeros = Literal["none", "integer", "float"]
# What ONNX Runtime's MatMulNBits takes.
_BITS = (2, 4, 8)
# Weights that are dequantized at once: the float copy of a slice of rows stays in the cache.
_WEIGHTS = 2**20


@register_layer
class PackedLinear(QuantizedLayer):
    """y = W x + b with W in b bits: s (q - z), a scale s for each group of columns, row, or for the matrix.

    The weights are dequantized as they are used. In ONNX: one ``MatMulNBits`` for 2, 4 and 8 bits with blocks that it
    takes, else the codes are unpacked by standard operators, once when a session is made.

    Args:
        in_features, out_features: I, O.
        bits: 2 to 8.
        group: columns that share a scale; None: a row.
        bias: whether there is one.
        zeros: zero points: ``none`` (2^(b-1)), ``integer`` codes, or ``float`` between codes.
        whole: one scale for the matrix.
        scale_type: ``float16`` or ``float32``.
        input_scale: whether the input is multiplied, feature by feature, before the product.
    """

    kind: ClassVar[str] = "packed_linear"
    keeps_dtype: ClassVar[frozenset[str]] = frozenset({"scale", "zero", "input_scale"})
    accuracy_level: ClassVar[int] = 1
    """Of MatMulNBits: 1 computes in float32; 4 quantizes the activations to int8, block by block."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int,
        group: int | None,
        bias: bool,
        zeros: Zeros = "integer",
        whole: bool = False,
        scale_type: str = "float16",
        input_scale: bool = False,
    ) -> None:
        super().__init__()
        if not 2 <= bits <= 8 or (group is not None and (whole or in_features % group)):
            raise ValueError(f"no matrix of {in_features} columns in {bits} bits with groups of {group}")
        if zeros not in ("none", "integer", "float") or scale_type not in ("float16", "float32"):
            raise ValueError(f"no zero points of kind {zeros!r} with scales in {scale_type!r}")
        self.in_features, self.out_features, self.bits, self.group = in_features, out_features, bits, group
        self.zeros, self.whole, self.scale_type = zeros, whole, scale_type
        rows, groups = (1, 1) if whole else (out_features, 1 if group is None else in_features // group)
        floating = torch.float16 if scale_type == "float16" else torch.float32
        self.codes = frozen(torch.empty(out_features, packed_bytes(in_features, bits), dtype=torch.uint8))
        self.scale = frozen(torch.empty(rows, groups, dtype=floating))
        self.zero: nn.Parameter | None = None
        if zeros == "integer":
            self.zero = frozen(torch.empty(rows, packed_bytes(groups, bits), dtype=torch.uint8))
        elif zeros == "float":
            self.zero = frozen(torch.empty(rows, groups, dtype=floating))
        self.input_scale = frozen(torch.empty(in_features, dtype=torch.float32)) if input_scale else None
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @classmethod
    def from_codes(
        cls, codes: Codes, bias: Tensor | None, dtype: torch.dtype, input_scale: Tensor | None = None
    ) -> PackedLinear:
        """Pack ``codes``; the model computes in ``dtype``.

        Args:
            input_scale: (I,) by which inputs are multiplied; ``codes`` stand for the weights that then fit.
        """
        rows, columns = codes.codes.shape
        zeros: Zeros = "none" if codes.zero is None else "float" if codes.zero.is_floating_point() else "integer"
        kind = "float16" if codes.scale.dtype == torch.float16 else "float32"
        made = (
            columns,
            rows,
            codes.bits,
            codes.group,
            bias is not None,
            zeros,
            codes.whole,
            kind,
            input_scale is not None,
        )
        layer = cls(*made).to(codes.codes.device, dtype)
        layer.codes.data, layer.scale.data = pack(codes.codes, codes.bits), codes.scale.contiguous()
        if layer.zero is not None and codes.zero is not None:
            packed = pack(codes.zero, codes.bits) if zeros == "integer" else codes.zero.to(codes.scale.dtype)
            layer.zero.data = packed.contiguous()
        if layer.input_scale is not None and input_scale is not None:
            layer.input_scale.data = input_scale.detach().float().clone()
        if layer.bias is not None and bias is not None:
            layer.bias.data = bias.detach().to(dtype).clone()
        return layer

    def arguments(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bits": self.bits,
            "group": self.group,
            "bias": self.bias is not None,
            "zeros": self.zeros,
            "whole": self.whole,
            "scale_type": self.scale_type,
            "input_scale": self.input_scale is not None,
        }

    @property
    def weight(self) -> Tensor:
        """What inputs are multiplied by, (O, I), their own multiplier included."""

        def build() -> Tensor:
            values = self._values(slice(None))
            return (values if self.input_scale is None else values * self.input_scale).to(dtype)

        dtype = self.dtype
        return lazy(build, (self.out_features, self.in_features), dtype, self.codes.device)

    def _values(self, rows: slice) -> Tensor:
        """Float32 weights of ``rows``, as they multiply the scaled input."""
        read = unpack_float if exporting() else unpack
        codes = read(self.codes[rows], self.bits, self.in_features).float()
        scale, zero = (each if each is None or self.whole else each[rows] for each in (self.scale, self.zero))
        if zero is not None and self.zeros == "integer":
            zero = read(zero, self.bits, cast(Tensor, scale).shape[1])
        return dequantize(codes, cast(Tensor, scale), zero, self.bits)

    def parameter_count(self) -> int:
        return self.in_features * self.out_features + (0 if self.bias is None else self.bias.numel())

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, O), in the dtype of ``x``."""
        if self.input_scale is not None:
            x = x * self.input_scale.to(x.dtype)
        if exporting():
            return self.contrib_onnx(x)
        rows = x.reshape(-1, self.in_features)
        if torch.is_grad_enabled() and rows.requires_grad:
            result = cast(Tensor, _Product.apply(rows, self))
        else:
            result = self.product(rows)
        result = result.reshape(*x.shape[:-1], self.out_features)
        return result if self.bias is None else result + self.bias.to(result.dtype)

    def product(self, x: Tensor) -> Tensor:
        """x Wᵀ, (N, I) -> (N, O), in the dtype of ``x``; a slice of W is float at a time."""
        return torch.cat([F.linear(x, self._values(part).to(x.dtype)) for part in self._parts()], -1)

    def back(self, gradient: Tensor) -> Tensor:
        """g W, (N, O) -> (N, I): the gradient for the input of ``product``."""
        result = gradient.new_zeros(gradient.shape[0], self.in_features)
        for part in self._parts():
            result += gradient[:, part] @ self._values(part).to(gradient.dtype)
        return result

    def _parts(self) -> list[slice]:
        step = max(1, _WEIGHTS // max(1, self.in_features))
        return [slice(start, start + step) for start in range(0, self.out_features, step)]

    def contrib_onnx(self, x: Tensor) -> Tensor:
        """The node for ONNX Runtime where it has one, computing in float32; else standard ones."""
        block = self._block()
        if block is None:
            return self.standard_onnx(x)
        packed = (self.codes, self.scale, self.zero)
        result = block_product.grouped(x, *packed, self.bits, block, self.accuracy_level).to(x.dtype)
        return result if self.bias is None else result + self.bias.to(x.dtype)

    def _block(self) -> int | None:
        """The block size of MatMulNBits for these codes, or None if it can't take them."""
        if self.bits not in _BITS or (self.bits == 8 and self.zeros == "float"):
            return None
        return block_product.block_for(self.in_features if self.group is None else self.group)

    def standard_onnx(self, x: Tensor) -> Tensor:
        """The product in operators that every runtime has; the codes are unpacked when the session is made."""
        weight = self._values(slice(None)).to(x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group={self.group}, zeros={self.zeros}"


class _Product(torch.autograd.Function):
    """``PackedLinear.product``: the weights take no gradient, and no float copy of them is kept for the input's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.back(gradients[0]), None
