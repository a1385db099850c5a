"""A linear layer with int8 weights that multiplies integers, in torch as in its ONNX file."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from compresskit.nn.base import CompressedLayer, exporting
from compresskit.numerics.grids import activation_grid, symmetric
from compresskit.registry import register_layer

Activations = Literal["token", "tensor"]


@register_layer
class Int8Linear(CompressedLayer):
    """y = W x + b with int8 weights, one scale a row of W, and uint8 activations quantized as they come.

    The forward pass computes what ONNX Runtime does with the exported nodes: exact int32 sums of products, then the
    scales. Gradients pass straight through the rounding (Bengio et al. 2013), so that biases, norms and whatever else
    is float can be fine-tuned.

    Args:
        in_features, out_features: I, O.
        bias: whether there is one.
        activations: one scale for each token, or one for the whole tensor, which is faster and depends on the batch.
    """

    kind: ClassVar[str] = "int8_linear"
    keeps_dtype: ClassVar[frozenset[str]] = frozenset({"weight_scale"})

    def __init__(self, in_features: int, out_features: int, bias: bool, activations: Activations = "token") -> None:
        super().__init__()
        self.in_features, self.out_features, self.activations = in_features, out_features, activations
        codes = torch.empty(out_features, in_features, dtype=torch.int8)
        self.weight_codes = nn.Parameter(codes, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(out_features, dtype=torch.float32), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @classmethod
    def from_weight(cls, weight: Tensor, bias: Tensor | None, activations: Activations = "token") -> Int8Linear:
        """Quantize ``weight`` (O, I), symmetric per row, to the nearest code."""
        out_features, in_features = weight.shape
        layer = cls(in_features, out_features, bias is not None, activations).to(weight.device)
        grid = symmetric(weight, 8)
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
        return self.weight_codes.float() * self.weight_scale[:, None]

    def parameter_count(self) -> int:
        return self.weight_codes.numel() + (0 if self.bias is None else self.bias.numel())

    def forward(self, x: Tensor) -> Tensor:
        if exporting():
            result = self._onnx(x)
        else:
            result = cast(
                Tensor, _IntegerMatmul.apply(x, self.weight_codes, self.weight_scale, self.activations == "token")
            )
        return result if self.bias is None else result + self.bias

    def _onnx(self, x: Tensor) -> Tensor:
        """The nodes of the ONNX file: integer products, and the scales in an order that no fusion misreads."""
        codes = self.weight_codes.T
        shape = (*x.shape[:-1], self.out_features)
        if self.activations == "tensor":
            quantized, step, zero = torch.onnx.ops.symbolic_multi_out(
                "DynamicQuantizeLinear",
                (x,),
                dtypes=(torch.uint8, torch.float32, torch.uint8),
                shapes=(x.shape, (), ()),
                version=21,
            )
            products = torch.onnx.ops.symbolic(
                "MatMulInteger", (quantized, codes, zero), dtype=torch.int32, shape=shape, version=21
            )
            return products.float() * (step * self.weight_scale)
        quantized, step, zero = activation_grid(x, per_token=True)
        products = torch.onnx.ops.symbolic(
            "MatMulInteger", (quantized.to(torch.uint8), codes), dtype=torch.int32, shape=shape, version=21
        )
        sums = self.weight_codes.sum(1, dtype=torch.int32)
        # ONNX Runtime reads Mul(Cast(products), Mul(step, scale)) as if `step` were one number: keep them apart.
        return (products - zero.to(torch.int32) * sums).float() * self.weight_scale * step

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, activations={self.activations}"


class _IntegerMatmul(torch.autograd.Function):
    """Quantize activations, multiply integers, scale back; the gradient is that of the float product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, per_token: bool) -> Tensor:
        ctx.save_for_backward(codes, scale)
        rows = x.reshape(-1, x.shape[-1]).float()
        if rows.shape[0] == 0:
            return x.new_zeros(*x.shape[:-1], codes.shape[0])
        quantized, step, zero = activation_grid(rows, per_token=per_token)
        # Signed codes for the kernel: shifting codes and zero points by 128 changes no difference between them.
        products = integer_matmul((quantized - 128).to(torch.int8), codes)
        sums = codes.sum(1, dtype=torch.int32)
        exact = products - (zero - 128).to(torch.int32) * sums
        result = exact.float() * scale * step if per_token else exact.float() * (step * scale)
        return result.to(x.dtype).reshape(*x.shape[:-1], codes.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        codes, scale = ctx.saved_tensors
        gradient = gradients[0]
        return (gradient * scale.to(gradient.dtype)) @ codes.to(gradient.dtype), None, None, None


def integer_matmul(left: Tensor, right: Tensor) -> Tensor:
    """Exact ``left @ right.T`` of int8 matrices (N, I) and (O, I), int32 (N, O)."""
    if left.is_cuda or _kernel_is_exact():
        return torch._int_mm(left.contiguous(), right.T)
    return (left.double() @ right.double().T).round().to(torch.int32)


@cache
def _kernel_is_exact() -> bool:
    """Whether this CPU's int8 kernel keeps every bit at the extremes: without VNNI some saturate at 16 bits."""
    left = torch.full((17, 256), 127, dtype=torch.int8)
    right = torch.full((16, 256), -127, dtype=torch.int8)
    left[::2] = -128
    return torch.equal(torch._int_mm(left, right.T), (left.double() @ right.double().T).to(torch.int32))
