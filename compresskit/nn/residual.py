"""A packed linear layer, and a product of two thin matrices that makes up for what its rounding lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from compresskit.nn.base import CompressedLayer
from compresskit.nn.lazy import lazy
from compresskit.nn.low_rank import LowRankLinear
from compresskit.nn.packed import PackedLinear
from compresskit.registry import register_layer


@register_layer
class ResidualLinear(CompressedLayer):
    """y = Q x + U (D x) + b: ``base`` holds Q in 2 to 8 bits, ``correction`` the thin U (O, R) and D (R, I).

    Both are layers of their own, and compute and export as they do elsewhere; the factors may be replaced by later
    steps, or be in few bits too.

    Args:
        base: arguments of the ``PackedLinear``, which has no bias.
        rank: R.
        bias: whether there is one.
    """

    kind: ClassVar[str] = "residual_linear"

    def __init__(self, base: Mapping[str, Any], rank: int, bias: bool) -> None:
        super().__init__()
        self.base = PackedLinear(**base)
        self.in_features, self.out_features, self.rank = self.base.in_features, self.base.out_features, rank
        self.correction = LowRankLinear(self.in_features, self.out_features, rank, bias=False)
        self.bias = nn.Parameter(torch.empty(self.out_features)) if bias else None

    @classmethod
    def from_parts(cls, base: PackedLinear, correction: LowRankLinear, bias: Tensor | None) -> ResidualLinear:
        """Of these very layers, which have no bias, and a copy of ``bias``."""
        with torch.device("meta"):
            layer = cls(base.arguments(), correction.rank, bias is not None)
        layer.base, layer.correction = base, correction
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().to(base.dtype).clone())
        return layer

    def arguments(self) -> dict[str, Any]:
        return {"base": self.base.arguments(), "rank": self.rank, "bias": self.bias is not None}

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the model."""
        return self.base.dtype

    @property
    def weight(self) -> Tensor:
        base, correction = self.base, self.correction
        shape = (self.out_features, self.in_features)
        return lazy(lambda: base.weight + correction.weight, shape, base.dtype, base.codes.device)

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, O), in the dtype of ``x``."""
        result = cast(Tensor, self.base(x) + self.correction(x))
        return result if self.bias is None else result + self.bias.to(result.dtype)
