"""A linear layer in training for few bits: float weights, used as what their codes will stand for."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresskit.nn.base import CompressedLayer
from compresskit.nn.int8 import Int8Linear
from compresskit.nn.packed import PackedLinear
from compresskit.numerics import integer
from compresskit.numerics.lsq import as_stored, carried, fake_quantized
from compresskit.numerics.rtn import Codes, nearest, stored
from compresskit.registry import register_layer

Inputs = Literal["float", "token", "tensor"]


@register_layer
class FakeQuantizedLinear(CompressedLayer):
    """y = ŵ x + b with ŵ the values of the nearest codes of float weights, computed anew in each call.

    It computes what the layer computes that ``deployed`` makes of it: ``PackedLinear``, or with inputs of 8 bits
    ``Int8Linear``. Weights, and steps where they are learned, take gradients through the rounding (``numerics.lsq``).
    A step is learned as a factor of what it was at first: an optimizer that moves every parameter by its learning rate
    then moves small steps no more than large ones.

    Args:
        in_features, out_features: I, O.
        bits: 2 to 8.
        group: columns that share a scale; None: a row.
        bias: whether there is one.
        zeros: whether there are zero points.
        whole: one scale for the matrix.
        scale_type: ``float16`` or ``float32``: in which the scales will be stored.
        inputs: ``float``; or quantized as they come, by ``token`` or by ``tensor``: then in 8 bits, by rows, no zeros.
        learned: whether the steps are trained.
    """

    kind: ClassVar[str] = "fake_quantized_linear"
    keeps_dtype: ClassVar[frozenset[str]] = frozenset({"start", "factor"})

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int,
        group: int | None,
        bias: bool,
        zeros: bool = True,
        whole: bool = False,
        scale_type: str = "float16",
        inputs: Inputs = "float",
        learned: bool = True,
    ) -> None:
        super().__init__()
        if not 2 <= bits <= 8 or (group is not None and (whole or in_features % group)):
            raise ValueError(f"no matrix of {in_features} columns in {bits} bits with groups of {group}")
        if inputs != "float" and (bits != 8 or group is not None or zeros or whole or scale_type != "float32"):
            raise ValueError("integer products take 8 bits, a scale a row, no zero points")
        self.in_features, self.out_features, self.bits, self.group = in_features, out_features, bits, group
        self.zeros, self.whole, self.scale_type, self.inputs, self.learned = zeros, whole, scale_type, inputs, learned
        rows, groups = (1, 1) if whole else (out_features, 1 if group is None else in_features // group)
        self.values = nn.Parameter(torch.empty(out_features, in_features))
        self.start = nn.Parameter(torch.empty(rows, groups, dtype=torch.float32), requires_grad=False)
        self.factor = nn.Parameter(torch.empty(rows, groups, dtype=torch.float32)) if learned else None
        self.zero = nn.Parameter(torch.empty(rows, groups, dtype=torch.uint8), requires_grad=False) if zeros else None
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @classmethod
    def from_codes(
        cls, codes: Codes, weight: Tensor, bias: Tensor | None, *, inputs: Inputs = "float", learned: bool = True
    ) -> FakeQuantizedLinear:
        """Start at ``weight`` (O, I) with the scales and zero points of ``codes``."""
        rows, columns = weight.shape
        layer = cls(
            columns,
            rows,
            codes.bits,
            codes.group,
            bias is not None,
            codes.zero is not None,
            codes.whole,
            "float16" if codes.scale.dtype == torch.float16 else "float32",
            inputs,
            learned,
        ).to(weight.device, weight.dtype)
        layer.values.data, layer.start.data = weight.detach().clone(), codes.scale.float().clone()
        if layer.factor is not None:
            layer.factor.data = torch.ones_like(layer.start)
        if layer.zero is not None and codes.zero is not None:
            layer.zero.data = codes.zero.clone()
        if layer.bias is not None and bias is not None:
            layer.bias.data = bias.detach().clone()
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
            "inputs": self.inputs,
            "learned": self.learned,
        }

    @property
    def step(self) -> Tensor:
        """The scales, (O, G), not yet rounded to the type in which they are stored."""
        return self.start if self.factor is None else self.start * self.factor

    @property
    def _floating(self) -> torch.dtype:
        return torch.float16 if self.scale_type == "float16" else torch.float32

    def _zero(self) -> Tensor:
        """(…, 1); of int8 codes 128, of which ``deployed`` takes off 128 again."""
        if self.zero is None:
            return torch.full_like(self.start, 2.0 ** (self.bits - 1)).unsqueeze(-1)
        return self.zero.float().unsqueeze(-1)

    def _parts(self) -> Tensor:
        """The weights in the groups that share a scale, (…, g) float32."""
        wide = self.values.float()
        return wide.reshape(1, 1, -1) if self.whole else wide.unflatten(1, (self.start.shape[1], -1))

    @property
    def weight(self) -> Tensor:
        """What the codes stand for, (O, I), with gradients."""
        scale = as_stored(self.step, self._floating).unsqueeze(-1)
        values = fake_quantized(self._parts(), scale, self._zero(), self.bits)
        return values.reshape(self.out_features, self.in_features).to(self.values.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, O), in the dtype of ``x``."""
        result = F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        if self.inputs == "float":
            return result
        with torch.no_grad():
            rows = x.reshape(-1, self.in_features).float()
            codes, scale = self._int8()
            exact = integer.linear(rows, codes, scale, self.bias, per_token=self.inputs == "token")
        return carried(result, exact.to(x.dtype).reshape(result.shape))

    @torch.no_grad()
    def codes(self) -> Codes:
        """The nearest codes of the weights as they now are, with the scales as they are stored."""
        scale = stored(self.step, self._floating)
        found = nearest(self._parts(), scale.unsqueeze(-1), self._zero(), 2**self.bits - 1)
        codes = found.reshape(self.out_features, self.in_features).to(torch.uint8)
        zero = None if self.zero is None else self.zero.detach().clone()
        return Codes(codes, scale.to(self._floating), zero, self.bits)

    def _int8(self) -> tuple[Tensor, Tensor]:
        """Signed codes and the scales of the rows."""
        codes = self.codes()
        return (codes.codes.to(torch.int16) - 128).to(torch.int8), codes.scale.reshape(-1)

    @torch.no_grad()
    def deployed(self) -> PackedLinear | Int8Linear:
        """The layer that stores the codes and computes the same."""
        if self.inputs == "float":
            return PackedLinear.from_codes(self.codes(), self.bias, self.values.dtype)
        layer = Int8Linear(self.in_features, self.out_features, self.bias is not None, self.inputs)
        layer = layer.to(self.values.device, self.values.dtype)
        layer.weight_codes.data, layer.weight_scale.data = self._int8()
        if layer.bias is not None:
            layer.bias.data = cast(Tensor, self.bias).detach().clone()
        return layer

    def parameter_count(self) -> int:
        return self.values.numel() + (0 if self.bias is None else self.bias.numel())

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group={self.group}, inputs={self.inputs}"
