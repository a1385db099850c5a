"""A linear layer whose weights are codes into a small table of levels."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresskit.nn.base import exporting
from compresskit.nn.lazy import lazy
from compresskit.nn.quantized import QuantizedLayer, frozen
from compresskit.numerics.lookup import Lookup, double_quantized, look_up, scales_of
from compresskit.numerics.packing import pack, packed_bytes, unpack, unpack_float
from compresskit.registry import register_layer

Scales = Literal["none", "float16", "float32", "int8"]
SCALE_BLOCK = 256
"""Scales that share a step and an offset where scales are in 8 bits."""


@register_layer
class LookupLinear(QuantizedLayer):
    """y = W x + b with w = level[code], times a scale for each group of a row where there is one.

    k-means codebooks (levels of their own for slices of rows), NormalFloat, signs and three values. In ONNX a Gather of
    the levels, which ONNX Runtime computes once, when a session is made.

    Args:
        in_features, out_features: I, O.
        bits: of a code; there are 2^bits levels.
        slices: S equal slices of rows, each with levels of its own.
        group: columns that share a scale; None: a row.
        scales: ``none``; ``float16``; ``float32``; or ``int8``: codes with a float step and offset for 256 of them.
        bias: whether there is one.
    """

    kind: ClassVar[str] = "lookup_linear"
    keeps_dtype: ClassVar[frozenset[str]] = frozenset({"levels", "scale", "scale_step", "scale_offset"})

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int,
        slices: int,
        group: int | None,
        scales: Scales,
        bias: bool,
    ) -> None:
        super().__init__()
        if not 1 <= bits <= 8 or out_features % slices or (group is not None and in_features % group):
            raise ValueError(f"no {out_features} x {in_features} matrix in {slices} slices with groups of {group}")
        if scales not in ("none", "float16", "float32", "int8"):
            raise ValueError(f"scales are none, float16, float32 or int8, not {scales!r}")
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        self.slices, self.group, self.scales = slices, group, scales
        groups = 1 if group is None else in_features // group
        self.codes = frozen(torch.empty(out_features, packed_bytes(in_features, bits), dtype=torch.uint8))
        self.levels = frozen(torch.empty(slices, 2**bits, dtype=torch.float32))
        kinds = {"float16": torch.float16, "float32": torch.float32, "int8": torch.uint8}
        shape = (out_features, groups)
        self.scale = None if scales == "none" else frozen(torch.empty(shape, dtype=kinds[scales]))
        blocks = -(-out_features * groups // SCALE_BLOCK) if scales == "int8" else None
        self.scale_step = None if blocks is None else frozen(torch.empty(blocks, dtype=torch.float32))
        self.scale_offset = None if blocks is None else frozen(torch.empty(blocks, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @classmethod
    def from_lookup(
        cls, found: Lookup, bits: int, bias: Tensor | None, dtype: torch.dtype, *, small_scales: bool = False
    ) -> LookupLinear:
        """Pack ``found``; the model computes in ``dtype``.

        Args:
            small_scales: keep the scales in 8 bits.
        """
        rows, columns = found.codes.shape
        scales: Scales = "none"
        group = None
        if found.scale is not None:
            scales = "int8" if small_scales else "float16" if found.scale.dtype == torch.float16 else "float32"
            group = None if found.scale.shape[1] == 1 else columns // found.scale.shape[1]
        layer = cls(columns, rows, bits, found.levels.shape[0], group, scales, bias is not None)
        layer = layer.to(found.codes.device, dtype)
        layer.codes.data, layer.levels.data = pack(found.codes, bits), found.levels.float().contiguous()
        if layer.scale is not None and found.scale is not None:
            if layer.scale_step is not None and layer.scale_offset is not None:
                codes, step, offset = double_quantized(found.scale, SCALE_BLOCK)
                layer.scale.data, layer.scale_step.data, layer.scale_offset.data = codes, step, offset
            else:
                layer.scale.data = found.scale.contiguous()
        if layer.bias is not None and bias is not None:
            layer.bias.data = bias.detach().to(dtype).clone()
        return layer

    def arguments(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bits": self.bits,
            "slices": self.slices,
            "group": self.group,
            "scales": self.scales,
            "bias": self.bias is not None,
        }

    @property
    def weight(self) -> Tensor:
        dtype = self.dtype
        shape = (self.out_features, self.in_features)
        return lazy(lambda: self._values().to(dtype), shape, dtype, self.codes.device)

    def _values(self) -> Tensor:
        """The matrix in float32."""
        read = unpack_float if exporting() else unpack
        found = look_up(read(self.codes, self.bits, self.in_features).long(), self.levels)
        scale = self._scales()
        if scale is None:
            return found
        return (found.unflatten(1, (scale.shape[1], -1)) * scale[..., None]).flatten(1)

    def _scales(self) -> Tensor | None:
        if self.scale_step is not None and self.scale_offset is not None:
            return scales_of(cast(Tensor, self.scale), self.scale_step, self.scale_offset, SCALE_BLOCK)
        return None if self.scale is None else self.scale.float()

    def parameter_count(self) -> int:
        return self.in_features * self.out_features + (0 if self.bias is None else self.bias.numel())

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, O), in the dtype of ``x``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self._values().to(x.dtype), bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, slices={self.slices}, scales={self.scales}"
