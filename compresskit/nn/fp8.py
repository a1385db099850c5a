"""A linear layer whose weights are 8-bit floats."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresskit.nn.base import exporting
from compresskit.nn.lazy import lazy
from compresskit.nn.quantized import QuantizedLayer, frozen
from compresskit.numerics import fp8
from compresskit.registry import register_layer

Inputs = Literal["float", "float8"]
_MULTIPLE = 16
"""Of both sizes that the kernel takes."""


@register_layer
class Float8Linear(QuantizedLayer):
    """y = W x + b with W in E4M3 8-bit floats, and a scale for each row or for the matrix.

    The weights are dequantized as they are used. On a CUDA device with products of 8-bit floats (compute capability 8.9
    and up) inputs are rounded to them too, with a scale for each token, unless ``inputs`` says ``float``. In ONNX the
    file holds the same 8-bit floats; they are cast and scaled once, when a session is made, and products are float.

    Args:
        in_features, out_features: I, O.
        bias: whether there is one.
        whole: one scale for the matrix.
        inputs: ``float8`` or ``float``.
    """

    kind: ClassVar[str] = "float8_linear"
    keeps_dtype: ClassVar[frozenset[str]] = frozenset({"codes", "scale"})

    def __init__(
        self, in_features: int, out_features: int, bias: bool, whole: bool = False, inputs: Inputs = "float8"
    ) -> None:
        super().__init__()
        if inputs not in ("float", "float8"):
            raise ValueError(f"no inputs of kind {inputs!r}")
        self.in_features, self.out_features, self.whole, self.inputs = in_features, out_features, whole, inputs
        self.codes = frozen(torch.empty(out_features, in_features, dtype=fp8.TYPE))
        self.scale = frozen(torch.empty(1 if whole else out_features, 1, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @classmethod
    def from_weight(
        cls, weight: Tensor, bias: Tensor | None, *, whole: bool = False, inputs: Inputs = "float8"
    ) -> Float8Linear:
        """Of a matrix (O, I); the model computes in its dtype."""
        rows, columns = weight.shape
        layer = cls(columns, rows, bias is not None, whole, inputs).to(weight.device, weight.dtype)
        layer.codes.data, layer.scale.data = fp8.quantize(weight, whole=whole)
        if layer.bias is not None and bias is not None:
            layer.bias.data = bias.detach().to(weight.dtype).clone()
        return layer

    def arguments(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "whole": self.whole,
            "inputs": self.inputs,
        }

    @property
    def weight(self) -> Tensor:
        dtype, shape = self.dtype, (self.out_features, self.in_features)
        return lazy(lambda: self._values().to(dtype), shape, dtype, self.codes.device)

    def _values(self) -> Tensor:
        return fp8.dequantize(self.codes, self.scale)

    def parameter_count(self) -> int:
        return self.in_features * self.out_features + (0 if self.bias is None else self.bias.numel())

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, O), in the dtype of ``x``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self._by_kernel(x):
            found = fp8.linear(x.reshape(-1, self.in_features), self.codes, self.scale).to(x.dtype)
            found = found.reshape(*x.shape[:-1], self.out_features)
            return found if bias is None else found + bias
        return F.linear(x, self._values().to(x.dtype), bias)

    def _by_kernel(self, x: Tensor) -> bool:
        """Whether the product of 8-bit floats is there for ``x``, and asked for; it has no gradient."""
        if self.inputs == "float" or not x.is_cuda or exporting() or (torch.is_grad_enabled() and x.requires_grad):
            return False
        sizes = (self.in_features, self.out_features)
        return all(size % _MULTIPLE == 0 for size in sizes) and torch.cuda.get_device_capability(x.device) >= (8, 9)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, whole={self.whole}, inputs={self.inputs}"
