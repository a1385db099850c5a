"""A linear layer with int8 weights that multiplies integers, in torch as in its ONNX file."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from compresskit.nn import block_product
from compresskit.nn.base import exporting
from compresskit.nn.lazy import lazy
from compresskit.nn.quantized import QuantizedLayer
from compresskit.numerics import integer
from compresskit.numerics.grids import symmetric
from compresskit.registry import register_layer

Activations = Literal["token", "tensor"]
# Of the ONNX operators that the forward pass is written in.
_OPSET = 21


@register_layer
class Int8Linear(QuantizedLayer):
    """y = W x + b with int8 weights, one scale a row of W, and uint8 activations quantized as they come.

    The forward pass computes what ONNX Runtime does with the exported nodes: exact int32 sums of products, then the
    scales, in float32. Gradients pass straight through the rounding (Bengio et al. 2013, arXiv 1308.3432), so that
    biases, norms and whatever else is float can be fine-tuned.

    Args:
        in_features, out_features: I, O.
        bias: whether there is one.
        activations: one scale for each token, or one for the whole tensor, which is faster and depends on the batch.
    """

    kind: ClassVar[str] = "int8_linear"
    keeps_dtype: ClassVar[frozenset[str]] = frozenset({"weight_scale"})

    def __init__(self, in_features: int, out_features: int, bias: bool, activations: Activations = "token") -> None:
        super().__init__()
        if activations not in ("token", "tensor"):
            raise ValueError(f"activations are quantized by 'token' or by 'tensor', not {activations!r}")
        self.in_features, self.out_features, self.activations = in_features, out_features, activations
        codes = torch.empty(out_features, in_features, dtype=torch.int8)
        self.weight_codes = nn.Parameter(codes, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(out_features, dtype=torch.float32), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @classmethod
    def from_weight(cls, weight: Tensor, bias: Tensor | None, activations: Activations = "token") -> Int8Linear:
        """Quantize ``weight`` (O, I), symmetric per row, to the nearest code; the model computes in its dtype."""
        out_features, in_features = weight.shape
        layer = cls(in_features, out_features, bias is not None, activations).to(weight.device, weight.dtype)
        grid = symmetric(weight.detach(), 8)
        layer.weight_codes.data, layer.weight_scale.data = grid.codes, grid.scale.reshape(-1)
        if layer.bias is not None and bias is not None:
            layer.bias.data = bias.detach().clone()
        return layer

    def arguments(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "activations": self.activations,
        }

    @property
    def weight(self) -> Tensor:
        codes, scale, dtype = self.weight_codes, self.weight_scale, self.dtype
        return lazy(lambda: (codes.float() * scale[:, None]).to(dtype), tuple(codes.shape), dtype, codes.device)

    def parameter_count(self) -> int:
        return self.weight_codes.numel() + (0 if self.bias is None else self.bias.numel())

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, O), in the dtype of ``x``."""
        if exporting():
            return self.nodes(x.float()).to(x.dtype)
        per_token = self.activations == "token"
        rows = x.reshape(-1, self.in_features).float()
        bias = self.bias
        if torch.is_grad_enabled() and (rows.requires_grad or (bias is not None and bias.requires_grad)):
            result = cast(Tensor, _StraightThrough.apply(rows, self.weight_codes, self.weight_scale, per_token))
            result = result if bias is None else result + bias
        else:
            result = integer.linear(rows, self.weight_codes, self.weight_scale, bias, per_token=per_token)
        return result.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def nodes(self, x: Tensor) -> Tensor:
        """The nodes of the ONNX file for any number of tokens."""
        return self._onnx(x)

    def _onnx(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.out_features)
        # As (I, O); the exporter stores it so.
        codes = self.weight_codes.T
        if self.activations == "tensor":
            quantized, step, zero = torch.onnx.ops.symbolic_multi_out(
                "DynamicQuantizeLinear",
                (x,),
                dtypes=(torch.uint8, torch.float32, torch.uint8),
                shapes=(x.shape, (), ()),
                version=_OPSET,
            )
            products = _matmul_integer(quantized, codes, zero, shape)
            result = products.float() * (step * self.weight_scale)
            return result if self.bias is None else result + self.bias.float()
        step, zero = integer.activation_range(x, per_token=True)
        one, none = x.new_ones(()), x.new_zeros((), dtype=torch.uint8)
        # QuantizeLinear rounds, clips and casts in one pass. Its scale must be one number: rows are divided before.
        quantized = torch.onnx.ops.symbolic(
            "QuantizeLinear", (x / step + zero, one, none), dtype=torch.uint8, shape=x.shape, version=_OPSET
        )
        products = _matmul_integer(quantized, codes, x.new_full((), 128, dtype=torch.uint8), shape)
        sums = self.weight_codes.sum(1, dtype=torch.int32) * self.weight_scale
        shift = (128 - zero) * step
        if self.bias is None:
            correction = shift @ sums[None]
        else:
            # One thin matrix product instead of two passes over the result.
            correction = torch.cat((shift, torch.ones_like(shift)), -1) @ torch.stack((sums, self.bias.float()))
        # ONNX Runtime reads Mul(Cast(products), Mul(step, scale)) as if `step` were one number: keep them apart.
        return products.float() * self.weight_scale * step + correction

    def step_onnx(self, x: Tensor) -> Tensor:
        """The node for few tokens: one ``MatMulNBits``, which quantizes activations in blocks; else those of many."""
        if self.in_features % block_product.BLOCK:
            return self._onnx(x)
        result = block_product.node(x, self.weight_codes, self.weight_scale)
        return result if self.bias is None else result + self.bias.float()

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, activations={self.activations}"


def _matmul_integer(left: Tensor, right: Tensor, zero: Tensor, shape: tuple[Any, ...]) -> Tensor:
    return torch.onnx.ops.symbolic("MatMulInteger", (left, right, zero), dtype=torch.int32, shape=shape, version=_OPSET)


class _StraightThrough(torch.autograd.Function):
    """``integer.linear`` with the gradient of the float product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, per_token: bool) -> Tensor:
        ctx.save_for_backward(codes, scale)
        return integer.linear(x, codes, scale, per_token=per_token)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        codes, scale = ctx.saved_tensors
        return (gradients[0] * scale) @ codes.to(gradients[0].dtype), None, None, None
