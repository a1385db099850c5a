"""What every layer of a compressed model has in common.

A layer is built from JSON arguments alone, so that the layout in ``config.json`` rebuilds it on the meta device, and
the stock loader of transformers fills its parameters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn


class CompressedLayer(nn.Module):
    """Base of the layers that the layout can ``replace`` a stock module by.

    Rules, each checked by ``tests/nn``:

    * ``type(layer)(**layer.arguments())`` on the meta device gives every parameter and buffer by name, shape, dtype.
    * no non-persistent buffer, no tensor made in ``__init__`` that the file doesn't carry;
    * integer tensors are parameters with ``requires_grad=False`` or persistent buffers;
    * codes are never stored under the stock name with the stock shape.
    """

    kind: ClassVar[str]
    keeps_dtype: ClassVar[frozenset[str]] = frozenset()
    """Names of own floating parameters and buffers (scales) that no ``.to(dtype)``, ``.half()`` … may change."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """The JSON-able keyword arguments that rebuild this layer empty."""

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The matrix that this layer stands for, (O, I) for a linear map and (V, D) for a table, computed anew.

        transformers reads ``module.weight`` in places (GPT-2's ``_init_weights``, T5's dtype check).
        """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        tables: tuple[dict[str, Any], ...] = (self._parameters, self._buffers)
        before = {
            name: table[name].detach()
            for table in tables
            for name in self.keeps_dtype & set(table)
            if table[name] is not None
        }
        super()._apply(fn, recurse)
        for table in tables:
            for name in before.keys() & set(table):
                if table[name].dtype != before[name].dtype:
                    table[name].data = before[name].to(table[name].device)
        return self

    def parameter_count(self) -> int:
        """Numbers of the model that this layer itself stands for, children left out; scales don't count."""
        return sum(parameter.numel() for parameter in self.parameters(recurse=False))

    def stored_bytes(self) -> int:
        """Bytes of parameters and buffers on disk, children included."""
        tensors = [*self.parameters(), *self.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def exporting() -> bool:
    """True while the model is traced for ONNX: layers then emit their own nodes."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
