"""What the layers of integer codes have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from compresskit.nn.base import CompressedLayer


class QuantizedLayer(CompressedLayer):
    """A layer whose own tensors don't tell in which floating type the model computes: it is remembered beside them.

    At first it is torch's default (the loader sets it to the type that it loads in); ``.to(dtype)``, ``.half()`` …
    change it as they change the parameters of other layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._dtype = torch.get_default_dtype()

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the model."""
        return self._dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._dtype = fn(torch.empty(0, dtype=self._dtype)).dtype
        return self


def frozen(tensor: Tensor) -> nn.Parameter:
    """A parameter that no training changes: codes, and the scales that were fitted to them."""
    return nn.Parameter(tensor, requires_grad=False)
