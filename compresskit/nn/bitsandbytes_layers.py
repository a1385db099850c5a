"""Layers in the formats of bitsandbytes: its kernels on a CUDA device, plain torch elsewhere.

What is stored is bitsandbytes' own; it is needed to quantize and for its kernels, and not to load, compute on a CPU or
export.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresskit.nn.base import exporting
from compresskit.nn.int8 import Activations, Int8Linear
from compresskit.nn.lazy import lazy
from compresskit.nn.quantized import QuantizedLayer, frozen
from compresskit.numerics import mixed_int8
from compresskit.numerics.lsq import carried
from compresskit.numerics.nf4_blocks import NESTED_BLOCK, nested_scales, values
from compresskit.registry import register_layer

LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Of the 16 codes, to the last bit as bitsandbytes has them; ``numerics.lookup.normal_float`` derives them."""


def kernels() -> Any:
    """The module ``bitsandbytes``, where it is installed; else None."""
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError:
        return None


@register_layer
class BitsandbytesNf4Linear(QuantizedLayer):
    """y = W x + b with W in bitsandbytes' NF4: 4-bit codes, a scale for each block of the flattened matrix.

    In ONNX the levels are gathered and scaled once, when a session is made: the same numbers, in float products.

    Args:
        in_features, out_features: I, O.
        block: weights that share a scale.
        double: whether the scales are in 8 bits themselves.
        bias: whether there is one.
    """

    kind: ClassVar[str] = "bitsandbytes_nf4_linear"
    keeps_dtype: ClassVar[frozenset[str]] = frozenset({"absmax", "nested_absmax", "nested_levels", "offset"})

    def __init__(self, in_features: int, out_features: int, block: int, double: bool, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.block, self.nested = in_features, out_features, block, double
        count = in_features * out_features
        blocks = -(-count // block)
        self.codes = frozen(torch.empty(-(-count // 2), 1, dtype=torch.uint8))
        self.absmax = frozen(torch.empty(blocks, dtype=torch.uint8 if double else torch.float32))
        wide = torch.float32
        self.nested_absmax = frozen(torch.empty(-(-blocks // NESTED_BLOCK), dtype=wide)) if double else None
        self.nested_levels = frozen(torch.empty(256, dtype=wide)) if double else None
        self.offset = frozen(torch.empty(1, dtype=wide)) if double else None
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @classmethod
    def from_state(cls, codes: Tensor, state: Any, bias: Tensor | None, dtype: torch.dtype) -> BitsandbytesNf4Linear:
        """Of what ``bitsandbytes.functional.quantize_4bit`` gives; the model computes in ``dtype``."""
        rows, columns = state.shape
        layer = cls(columns, rows, state.blocksize, bool(state.nested), bias is not None).to(codes.device, dtype)
        layer.codes.data, layer.absmax.data = codes.reshape(-1, 1), state.absmax
        if layer.nested_absmax is not None and layer.nested_levels is not None and layer.offset is not None:
            layer.nested_absmax.data, layer.nested_levels.data = state.state2.absmax.float(), state.state2.code.float()
            layer.offset.data = state.offset.float().reshape(1)
        if layer.bias is not None and bias is not None:
            layer.bias.data = bias.detach().to(dtype).clone()
        return layer

    def arguments(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "block": self.block,
            "double": self.nested,
            "bias": self.bias is not None,
        }

    @property
    def weight(self) -> Tensor:
        dtype, shape = self.dtype, (self.out_features, self.in_features)
        return lazy(lambda: self._values().to(dtype), shape, dtype, self.codes.device)

    def _values(self) -> Tensor:
        levels = torch.tensor(LEVELS, device=self.codes.device)
        return values(self.codes, levels, self._scales(), self.block, (self.out_features, self.in_features))

    def _scales(self) -> Tensor:
        """(N,) float32."""
        if self.nested_absmax is None or self.nested_levels is None or self.offset is None:
            return self.absmax
        return nested_scales(self.absmax, self.nested_absmax, self.nested_levels, self.offset)

    def parameter_count(self) -> int:
        return self.in_features * self.out_features + (0 if self.bias is None else self.bias.numel())

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, O), in the dtype of ``x``."""
        found = kernels() if x.is_cuda and not exporting() else None
        if found is not None:
            return self.by_kernels(x, found)
        return F.linear(x, self._values().to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def by_kernels(self, x: Tensor, library: Any) -> Tensor:
        """The product by bitsandbytes' kernels."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        state = self._state(x.dtype, library.functional.QuantState)
        return cast(Tensor, library.matmul_4bit(x, self.codes, state, bias=bias))

    def _state(self, dtype: torch.dtype, make: Any) -> Any:
        nested = None
        if self.nested:
            nested = make(
                absmax=self.nested_absmax, code=self.nested_levels, blocksize=NESTED_BLOCK, dtype=torch.float32
            )
        return make(
            absmax=self.absmax,
            shape=torch.Size((self.out_features, self.in_features)),
            code=torch.tensor(LEVELS, device=self.codes.device),
            blocksize=self.block,
            quant_type="nf4",
            dtype=dtype,
            offset=None if self.offset is None else self.offset[0],
            state2=nested,
        )

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, block={self.block}, double={self.nested}"


@register_layer
class MixedInt8Linear(Int8Linear):
    """LLM.int8(): int8 weights by rows, int8 inputs by tokens, and columns of inputs with an outlier in floats.

    Which columns that is depends on all tokens of the call, so a row's result depends on the batch. In ONNX (profile
    ``fast``) the products of ``Int8Linear``, which hold no column back: where outliers matter the file's check fails,
    and the profile ``portable``, whose inputs stay float, is the one to take.

    Args:
        in_features, out_features, bias: as ``Int8Linear``.
        threshold: magnitude from which an input is an outlier; 0: none is.
        activations: ``token``; of the ONNX file.
    """

    kind: ClassVar[str] = "mixed_int8_linear"

    def __init__(
        self, in_features: int, out_features: int, bias: bool, threshold: float, activations: Activations = "token"
    ) -> None:
        super().__init__(in_features, out_features, bias, activations)
        self.threshold = threshold

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "threshold": self.threshold}

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, O), in the dtype of ``x``."""
        if exporting():
            return super().forward(x)
        rows = x.reshape(-1, self.in_features)
        found = kernels() if x.is_cuda else None
        if torch.is_grad_enabled() and (rows.requires_grad or (self.bias is not None and self.bias.requires_grad)):
            bias = None if self.bias is None else self.bias.to(rows.dtype)
            plain = F.linear(rows, self.weight.to(rows.dtype), bias)
            with torch.no_grad():
                exact = self._product(rows, found)
            result = carried(plain, exact)
        else:
            result = self._product(rows, found)
        return result.reshape(*x.shape[:-1], self.out_features)

    def _product(self, rows: Tensor, library: Any) -> Tensor:
        if library is not None:
            return self.by_kernels(rows, library)
        wide = rows.float()
        result = mixed_int8.linear(wide, self.weight_codes, self.weight_scale, self.bias, self.threshold)
        return result.to(rows.dtype)

    def by_kernels(self, rows: Tensor, library: Any) -> Tensor:
        """The product of (N, I) by bitsandbytes' operators, which compute in float16."""
        half = rows.to(torch.float16)
        codes, scale, outliers = library.functional.int8_vectorwise_quant(half, threshold=self.threshold)
        bias = None if self.bias is None else self.bias.to(torch.float16)
        absmax = self.weight_scale * 127
        result, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
            half, codes, self.weight_codes, scale, absmax, outliers, bias
        )
        return cast(Tensor, result).to(rows.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, threshold={self.threshold}"
