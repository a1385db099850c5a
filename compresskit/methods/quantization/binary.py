"""``quantization.binary``: signs, and a scale for each row."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from compresskit.methods.quantization._few import FewLevels
from compresskit.numerics import lookup
from compresskit.registry import register


@register
class Binary(FewLevels):
    """Weights as signs times the mean magnitude of their row or group: 1 bit each.

    The nearest such matrix, but far from the weights: useful for a few matrices, or with training through the signs,
    towards what the model gave before. What stays float is trained with them, tables excepted.

    ```yaml
    - quantization.binary: {train: 500, scales: loss}
    ```
    """

    name: ClassVar[str] = "binary"
    levels: ClassVar[int] = 2
    paper: ClassVar[str] = (
        "Rastegari et al., XNOR-Net, ECCV 2016 (arXiv 1603.05279); loss: Hou et al., ICLR 2017 (arXiv 1611.01600)"
    )

    def found(self, weight: Tensor) -> lookup.Lookup:
        """Signs, and the optimal scale."""
        return lookup.binary(weight, self.group)
