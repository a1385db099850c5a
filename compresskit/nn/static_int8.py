"""A linear layer of int8 weights whose activations are quantized with a fixed scale, found on calibration data."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compresskit.nn.base import exporting
from compresskit.nn.lazy import lazy
from compresskit.nn.quantized import QuantizedLayer
from compresskit.numerics import static_ranges
from compresskit.numerics.integer import integer_matmul
from compresskit.numerics.lsq import carried
from compresskit.registry import register_layer

_OPSET = 21
_ROWS = 256


@register_layer
class StaticInt8Linear(QuantizedLayer):
    """y = W (m ⊙ x) + b with int8 weights, one scale a row, and uint8 activations, one scale for good.

    Nothing about the input is measured at run time, so that the graph holds one QuantizeLinear, and rows of a batch
    don't touch each other.

    Args:
        in_features, out_features: I, O.
        bias: whether there is one.
        smooth: whether inputs are multiplied by ``input_multiplier`` (I,) first, the inverse of a smoothing scale that
            the weights took over.
        scores: whether results are queries or keys with a known range, ``output_scale``: files of standard operators
            quantize them too, and runtimes that can multiply them in int8. Here they stay float.
    """

    kind: ClassVar[str] = "static_int8_linear"
    keeps_dtype: ClassVar[frozenset[str]] = frozenset(
        {"weight_scale", "input_scale", "input_multiplier", "output_scale"}
    )

    def __init__(
        self, in_features: int, out_features: int, bias: bool, smooth: bool = False, scores: bool = False
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.smooth, self.scores = smooth, scores
        codes = torch.empty(out_features, in_features, dtype=torch.int8)
        self.weight_codes = nn.Parameter(codes, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(out_features, dtype=torch.float32), requires_grad=False)
        self.input_scale = nn.Parameter(torch.empty((), dtype=torch.float32), requires_grad=False)
        self.input_zero = nn.Parameter(torch.empty((), dtype=torch.uint8), requires_grad=False)
        multiplier = torch.empty(in_features, dtype=torch.float32) if smooth else None
        self.input_multiplier = None if multiplier is None else nn.Parameter(multiplier, requires_grad=False)
        output_scale = torch.empty((), dtype=torch.float32) if scores else None
        self.output_scale = None if output_scale is None else nn.Parameter(output_scale, requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        input_scale: float,
        input_zero: int,
        multiplier: Tensor | None,
        dtype: torch.dtype,
        output_scale: float | None = None,
    ) -> StaticInt8Linear:
        """From int8 ``codes`` (O, I) with their scales (O,), already of the smoothed matrix; ``dtype`` of the model."""
        out_features, in_features = codes.shape
        layer = cls(in_features, out_features, bias is not None, multiplier is not None, output_scale is not None)
        layer = layer.to(codes.device, dtype)
        layer.weight_codes.data, layer.weight_scale.data = codes.contiguous(), scale.float().reshape(-1)
        layer.input_scale.data = torch.tensor(input_scale, dtype=torch.float32, device=codes.device)
        layer.input_zero.data = torch.tensor(input_zero, dtype=torch.uint8, device=codes.device)
        if layer.input_multiplier is not None and multiplier is not None:
            layer.input_multiplier.data = multiplier.float().clone()
        if layer.output_scale is not None:
            layer.output_scale.data = torch.tensor(output_scale, dtype=torch.float32, device=codes.device)
        if layer.bias is not None and bias is not None:
            layer.bias.data = bias.detach().clone()
        return layer

    def arguments(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "smooth": self.smooth,
            "scores": self.scores,
        }

    @property
    def weight(self) -> Tensor:
        codes, scale, multiplier, dtype = self.weight_codes, self.weight_scale, self.input_multiplier, self.dtype

        def values() -> Tensor:
            plain = codes.float() * scale[:, None]
            return (plain if multiplier is None else plain * multiplier).to(dtype)

        return lazy(values, tuple(codes.shape), dtype, codes.device)

    def parameter_count(self) -> int:
        return self.weight_codes.numel() + (0 if self.bias is None else self.bias.numel())

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, O), in the dtype of ``x``."""
        if exporting():
            return self.contrib_onnx(self._smoothed(x.float())).to(x.dtype)
        rows = self._smoothed(x.reshape(-1, self.in_features).float())
        if torch.is_grad_enabled() and rows.requires_grad:
            # Gradients pass straight through the rounding (Bengio et al. 2013, arXiv 1308.3432).
            plain = rows @ (self.weight_codes.float() * self.weight_scale[:, None]).T
            result = carried(plain, self._products(rows.detach()))
        else:
            result = self._products(rows)
        result = result if self.bias is None else result + self.bias
        return result.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _smoothed(self, x: Tensor) -> Tensor:
        return x if self.input_multiplier is None else x * self.input_multiplier

    def _products(self, rows: Tensor) -> Tensor:
        """Exact int32 sums of products of the codes, then both scales, as the exported nodes compute them."""
        result = rows.new_empty(rows.shape[0], self.out_features)
        zero = int(self.input_zero)
        shift = (zero - 128) * self.weight_codes.sum(1, dtype=torch.int32)
        scale = self.input_scale * self.weight_scale
        step = _ROWS if rows.device.type == "cpu" else max(1, rows.shape[0])
        for start in range(0, rows.shape[0], step):
            part = slice(start, start + step)
            codes = static_ranges.codes(rows[part], self.input_scale, zero).sub_(128).to(torch.int8)
            torch.mul(integer_matmul(codes, self.weight_codes) - shift, scale, out=result[part])
        return result

    def contrib_onnx(self, x: Tensor) -> Tensor:
        """The nodes for ONNX Runtime: QuantizeLinear, and one product with scales and bias inside."""
        quantized = self._quantize(x)
        return torch.onnx.ops.symbolic(
            "com.microsoft::MatMulIntegerToFloat",
            (quantized, self.weight_codes.T, self.input_scale, self.weight_scale, self.input_zero, None, self.bias),
            dtype=torch.float32,
            shape=(*x.shape[:-1], self.out_features),
            version=1,
        )

    def standard_onnx(self, x: Tensor) -> Tensor:
        """The nodes of a file without contrib operators: both factors quantized and dequantized before the product."""

        left = _dequantize(self._quantize(x), self.input_scale, self.input_zero)
        none = torch.zeros(self.out_features, dtype=torch.int8)
        result = left @ _dequantize(self.weight_codes.T, self.weight_scale, none)
        result = result if self.bias is None else result + self.bias
        if self.output_scale is None:
            return result
        none = torch.zeros((), dtype=torch.int8)
        return _dequantize(_quantize(result, self.output_scale, none), self.output_scale, none)

    def _quantize(self, x: Tensor) -> Tensor:
        return _quantize(x, self.input_scale, self.input_zero)

    def extra_repr(self) -> str:
        sizes = f"{self.in_features}, {self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, smooth={self.smooth}, scores={self.scores}"


def _quantize(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic("QuantizeLinear", (x, scale, zero), dtype=zero.dtype, shape=x.shape, version=_OPSET)


def _dequantize(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", (codes, scale, zero), {"axis": 1}, dtype=torch.float32, shape=codes.shape, version=_OPSET
    )
