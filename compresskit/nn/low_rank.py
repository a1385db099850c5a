"""A linear layer as the product of two thin ones."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from compresskit.nn.base import CompressedLayer
from compresskit.nn.lazy import lazy
from compresskit.registry import register_layer


@register_layer
class LowRankLinear(CompressedLayer):
    """y = U (D x) + b, with D (R, I) and U (O, R): two ordinary linear layers, which later steps may replace.

    Args:
        in_features, out_features, rank: I, O, R.
        bias: whether there is one; it lies in ``up``.
    """

    kind: ClassVar[str] = "low_rank_linear"

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank, self.has_bias = in_features, out_features, rank, bias
        self.down: nn.Module = nn.Linear(in_features, rank, bias=False)
        self.up: nn.Module = nn.Linear(rank, out_features, bias=bias)

    @classmethod
    def from_factors(cls, up: Tensor, down: Tensor, bias: Tensor | None) -> LowRankLinear:
        """From U (O, R), D (R, I) and b (O,), in their dtype."""
        layer = cls(down.shape[1], up.shape[0], down.shape[0], bias is not None).to(device=up.device, dtype=up.dtype)
        with torch.no_grad():
            cast(nn.Linear, layer.down).weight.copy_(down)
            cast(nn.Linear, layer.up).weight.copy_(up)
            if bias is not None:
                cast(nn.Linear, layer.up).bias.copy_(bias)
        return layer

    def arguments(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "rank": self.rank,
            "bias": self.has_bias,
        }

    @property
    def weight(self) -> Tensor:
        up, down = cast(Tensor, self.up.weight), cast(Tensor, self.down.weight)
        return lazy(lambda: up @ down, (self.out_features, self.in_features), up.dtype, up.device)

    @property
    def bias(self) -> Tensor | None:
        """The bias, which ``up`` holds."""
        return cast("Tensor | None", self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.up(self.down(x)))
