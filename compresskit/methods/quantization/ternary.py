"""``quantization.ternary``: -1, 0 and 1, and a scale for each row."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from compresskit.methods.quantization._few import FewLevels
from compresskit.numerics import lookup
from compresskit.registry import register


@register
class Ternary(FewLevels):
    """Weights as -1, 0 or 1 times a scale for each row or group, 2 bits each; small weights become 0.

    Far from the weights: useful for a few matrices, or before recovery training of what stays float.
    """

    name: ClassVar[str] = "ternary"
    code_bits: ClassVar[int] = 2
    paper: ClassVar[str] = "Li et al., Ternary Weight Networks, 2016 (arXiv 1605.04711)"

    threshold: float = Field(0.7, ge=0, le=3, description="weights up to this share of the mean magnitude become 0")

    def found(self, weight: Tensor) -> lookup.Lookup:
        """Three levels by the threshold rule."""
        return lookup.ternary(weight, self.group, self.threshold)
