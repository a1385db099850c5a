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

    Far from the weights: useful for a few matrices, or with training through the levels, towards what the model gave
    before; what stays float is trained with them, tables excepted. Learned scales are two a row, one on each side of 0.

    ```yaml
    - quantization.ternary: {train: 500, scales: learned}
    ```
    """

    name: ClassVar[str] = "ternary"
    levels: ClassVar[int] = 3
    paper: ClassVar[str] = (
        "Li et al., TWN, 2016 (arXiv 1605.04711); learned: Zhu et al., TTQ, ICLR 2017 (arXiv 1612.01064); "
        "loss: Hou and Kwok, ICLR 2018 (arXiv 1802.08635)"
    )

    threshold: float = Field(0.7, ge=0, le=3, description="weights up to this share of the mean magnitude become 0")

    def zeroed(self) -> float:
        """As the option says."""
        return self.threshold

    def found(self, weight: Tensor) -> lookup.Lookup:
        """Three levels by the threshold rule."""
        return lookup.ternary(weight, self.group, self.threshold)
