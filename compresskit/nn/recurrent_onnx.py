"""The ONNX nodes of an LSTM or GRU.

The codes of compressed matrices stay in the file as they are in the checkpoint: the order of the gates, which ONNX has
otherwise than torch, is changed by nodes that a runtime computes once, when a session is made.

Shapes: T steps, B sequences, I inputs, H hidden size, D directions, L layers, g gates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = Tensor | tuple[Tensor, Tensor]
# torch has input, forget, cell, output; reset, update, new. ONNX: input, output, forget, cell; update, reset, hidden.
_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
_OPSET = 21


@dataclass(frozen=True)
class Shape:
    """Of one LSTM or GRU.

    Args:
        cell: ``lstm`` or ``gru``. hidden: H. layers: L. directions: D.
    """

    cell: str
    hidden: int
    layers: int
    directions: int

    def attributes(self) -> dict[str, Any]:
        """Of the node."""
        found = {"hidden_size": self.hidden, "direction": "bidirectional" if self.directions == 2 else "forward"}
        # torch multiplies the states before the reset gate does.
        return found if self.cell == "lstm" else {**found, "linear_before_reset": 1}

    def ordered(self, rows: Tensor) -> Tensor:
        """Rows (gH, …) in ONNX's order of the gates."""
        width = self.hidden
        return torch.cat([rows[number * width : (number + 1) * width] for number in _ORDER[self.cell]])

    def together(self, parts: list[Tensor], layer: int, side: int) -> Tensor:
        """Of ``parts``, one a matrix, those of ``layer`` on inputs (side 0) or states (1): (D, gH, …)."""
        start = 2 * self.directions * layer + side
        return torch.stack([self.ordered(part) for part in parts[start : start + 2 * self.directions : 2]])


def float_nodes(
    shape: Shape, weights: list[Tensor], biases: list[Tensor] | None, x: Tensor, lengths: Tensor | None, hx: Any
) -> tuple[Tensor, State]:
    """``LSTM`` or ``GRU`` layer by layer.

    Args:
        weights: (gH, …), inputs and states, direction by direction, layer by layer. biases: (gH,) likewise.
        x: (T, B, I). lengths: (B,) int32. hx: (L·D, B, H), or two of them; zeros if None.
    """

    def node(layer: int, x: Tensor, common: tuple[Any, ...], results: Any) -> Any:
        inputs = (x, shape.together(weights, layer, 0), shape.together(weights, layer, 1), *common)
        return torch.onnx.ops.symbolic_multi_out(
            shape.cell.upper(), inputs, shape.attributes(), version=_OPSET, **results
        )

    return _layers(shape, node, biases, x, lengths, hx)


def integer_nodes(
    shape: Shape,
    codes: list[tuple[Tensor, Tensor]],
    biases: list[Tensor] | None,
    x: Tensor,
    lengths: Tensor | None,
    hx: Any,
) -> tuple[Tensor, State]:
    """``DynamicQuantizeLSTM`` layer by layer: as ``float_nodes``, of int8 codes (4H, …) with scales (4H,)."""
    values, scales = [list(part) for part in zip(*codes, strict=True)]

    def node(layer: int, x: Tensor, common: tuple[Any, ...], results: Any) -> Any:
        matrices = [shape.together(values, layer, side).transpose(1, 2) for side in (0, 1)]
        steps = [shape.together(scales, layer, side) for side in (0, 1)]
        zeros = torch.zeros_like(steps[0], dtype=torch.int8)
        # None: peepholes, which torch doesn't have.
        inputs = (x, *matrices, *common, None, steps[0], zeros, steps[1], zeros)
        return torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::DynamicQuantizeLSTM", inputs, shape.attributes(), version=1, **results
        )

    return _layers(shape, node, biases, x, lengths, hx)


def _layers(
    shape: Shape, node: Callable[..., Any], biases: list[Tensor] | None, x: Tensor, lengths: Tensor | None, hx: Any
) -> tuple[Tensor, State]:
    states = [] if hx is None else list(hx) if isinstance(hx, tuple) else [hx]
    steps, batch = x.shape[:2]
    last: list[Any] = []
    count = 3 if shape.cell == "lstm" else 2
    for layer in range(shape.layers):
        own = slice(shape.directions * layer, shape.directions * (layer + 1))
        bias = None
        if biases is not None:
            bias = torch.cat([shape.together(biases, layer, side) for side in (0, 1)], 1)
        begin = [part[own] for part in states] or [None] * (count - 1)
        one = (shape.directions, batch, shape.hidden)
        results = {
            "dtypes": (x.dtype,) * count,
            "shapes": ((steps, shape.directions, batch, shape.hidden), *[one] * (count - 1)),
        }
        output, *end = node(layer, x, (bias, lengths, *begin), results)
        x = output.transpose(1, 2).flatten(2)
        last.append(end)
    found = [torch.cat(part) for part in zip(*last, strict=True)]
    return x, (found[0], found[1]) if shape.cell == "lstm" else found[0]
