"""A linear layer in training for two or three levels: float weights, used as the signs that will be stored."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresskit.nn.base import CompressedLayer
from compresskit.nn.lookup import LookupLinear
from compresskit.numerics.grids import grouped
from compresskit.numerics.lookup import Lookup, of_signs, three_signs, two_signs
from compresskit.registry import register_layer

Scales = Literal["mean", "learned", "loss"]
_RANGE = 1.0
"""Weights beyond take no gradient (Courbariaux et al., BinaryConnect, 2015, arXiv 1511.00363, section 2.4)."""
_DECAY = 0.999
"""Of the running mean of squared gradients, as Adam's."""
_LEAST = 1e-12


@register_layer
class FakeLookupLinear(CompressedLayer):
    """y = ŵ x + b with ŵ two or three levels of float weights, found anew in each call.

    It computes what the ``LookupLinear`` computes that ``deployed`` makes of it. Weights take gradients straight
    through the choice of a level. Scales are found from the weights (XNOR-Net, TWN); or with ``loss`` so that the loss
    moves least, by the root of the mean squared gradient as the diagonal of its Hessian (see ``numerics.lookup``);
    or they are ``learned``: of three levels one on each side of 0 for each row, and weights take their gradient times
    the size of their level (Zhu et al., Trained Ternary Quantization, ICLR 2017, arXiv 1612.01064, eq. 7 and 8).

    Args:
        in_features, out_features: I, O.
        levels: 2 or 3.
        group: columns that share a scale; None: a row.
        bias: whether there is one.
        scales: ``mean``, ``learned`` or ``loss``.
        threshold: three levels: weights up to this share of the mean size become 0.
    """

    kind: ClassVar[str] = "fake_lookup_linear"
    keeps_dtype: ClassVar[frozenset[str]] = frozenset({"start", "factor"})
    felt: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        levels: int,
        group: int | None,
        bias: bool,
        scales: Scales = "mean",
        threshold: float = 0.7,
    ) -> None:
        super().__init__()
        if levels not in (2, 3) or (group is not None and in_features % group):
            raise ValueError(f"no matrix of {in_features} columns in {levels} levels with groups of {group}")
        if scales == "learned" and levels == 3 and group is not None:
            raise ValueError("levels that are learned are a row's: there are no groups")
        self.in_features, self.out_features, self.levels, self.group = in_features, out_features, levels, group
        self.scales, self.threshold = scales, threshold
        groups = 1 if group is None else in_features // group
        self.values = nn.Parameter(torch.empty(out_features, in_features))
        self.start: nn.Parameter | None = None
        self.factor: nn.Parameter | None = None
        if scales == "learned":
            self.start = nn.Parameter(torch.empty(out_features, groups, 1), requires_grad=False)
            self.factor = nn.Parameter(torch.ones(out_features, groups, levels - 1))
        self.register_buffer("felt", torch.zeros(out_features, in_features) if scales == "loss" else None)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @classmethod
    def from_weight(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        levels: int,
        group: int | None = None,
        scales: Scales = "mean",
        threshold: float = 0.7,
    ) -> FakeLookupLinear:
        """Start at ``weight`` (O, I)."""
        rows, columns = weight.shape
        layer = cls(columns, rows, levels, group, bias is not None, scales, threshold)
        layer = layer.to(weight.device, weight.dtype)
        layer.values.data = weight.detach().clone()
        if layer.start is not None and layer.factor is not None:
            layer.start.data = layer._found()[1]
            layer.factor.data = torch.ones_like(layer.factor, dtype=torch.float32)
        if layer.bias is not None and bias is not None:
            layer.bias.data = bias.detach().clone()
        return layer

    def arguments(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "levels": self.levels,
            "group": self.group,
            "bias": self.bias is not None,
            "scales": self.scales,
            "threshold": self.threshold,
        }

    @torch.no_grad()
    def _found(self) -> tuple[Tensor, Tensor]:
        """Signs (O, G, g) and scales (O, G, 1) of the weights as they now are."""
        parts = grouped(self.values.float(), self.group)
        # Before the first gradient all weights count the same.
        felt = None if self.felt is None else grouped(self.felt.float().sqrt().clamp(min=_LEAST), self.group)
        return two_signs(parts, felt) if self.levels == 2 else three_signs(parts, self.threshold, felt)

    def _learned(self) -> Tensor | None:
        """Sizes of the levels, (O, G, 1), or (O, G, 2) above and below 0; None where they aren't learned."""
        return None if self.start is None or self.factor is None else self.start * self.factor

    @property
    def weight(self) -> Tensor:
        """What will be stored, (O, I), with gradients."""
        parts = grouped(self.values.float(), self.group)
        signs, scale = self._found()
        slope = (parts.detach().abs() <= _RANGE).float()
        learned = self._learned()
        if learned is not None:
            scale = torch.where(signs >= 0, learned[..., :1], learned[..., -1:])
            slope = slope * torch.where(signs == 0, 1.0, scale.detach())
        # The second term is 0, and carries the gradient.
        found = signs * scale + slope * (parts - parts.detach())
        if self.felt is not None and found.requires_grad:
            found.register_hook(self._feel)
        return found.flatten(1).to(self.values.dtype)

    def _feel(self, gradient: Tensor) -> None:
        felt = cast(Tensor, self.felt)
        felt.mul_(_DECAY).add_(gradient.detach().flatten(1).square().to(felt.dtype), alpha=1 - _DECAY)

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, O), in the dtype of ``x``."""
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    @torch.no_grad()
    def deployed(self) -> LookupLinear:
        """The layer that stores the codes and computes the same."""
        signs, scale = self._found()
        learned = self._learned()
        if learned is not None and self.levels == 3:
            above, below = learned[:, 0].float().unbind(-1)
            none = torch.zeros_like(above)
            found = Lookup((signs.flatten(1) + 1).to(torch.uint8), torch.stack([-below, none, above, none], 1), None)
        else:
            found = of_signs(signs, scale if learned is None else learned.float(), self.levels)
        return LookupLinear.from_lookup(found, self.levels - 1, self.bias, self.values.dtype)

    def parameter_count(self) -> int:
        return self.values.numel() + (0 if self.bias is None else self.bias.numel())

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, levels={self.levels}, scales={self.scales}"
