"""An LSTM or GRU whose matrices are layers of their own, which compressed layers may replace.

Shapes: T steps, B sequences, I inputs, H hidden size, D directions, L layers, N attended tokens, g gates (4 of an LSTM,
3 of a GRU).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from compresskit.nn import recurrent_onnx, recurrent_steps
from compresskit.nn.base import CompressedLayer, exporting
from compresskit.nn.int8 import Int8Linear
from compresskit.nn.recurrent_onnx import Shape
from compresskit.registry import register_layer

CELLS: dict[type[nn.Module], Literal["lstm", "gru"]] = {nn.LSTM: "lstm", nn.GRU: "gru"}
_GATES = {"lstm": 4, "gru": 3}
State = Tensor | tuple[Tensor, Tensor]


def matrix_names(module: nn.RNNBase) -> list[str]:
    """The names of the matrices of an LSTM or GRU, layer by layer; none where an LSTM projects its states."""
    if module.proj_size:
        return []
    return _names(module.num_layers, module.bidirectional)


def _names(layers: int, bidirectional: bool) -> list[str]:
    return [
        f"weight_{source}_l{layer}{direction}"
        for layer in range(layers)
        for direction in ("", "_reverse")[: 1 + bidirectional]
        for source in ("ih", "hh")
    ]


@register_layer
class Recurrent(CompressedLayer):
    """``nn.LSTM`` or ``nn.GRU`` with the same arguments and results, its matrices held by linear layers below it.

    They have the names of torch's parameters (``weight_ih_l0``), with the bias of the same side. Their weights are
    computed (dequantized, multiplied out) once a call, and torch's own kernel runs on them: inputs and states stay
    float, whatever layer stands there. Only where a hook watches one of them are they called step by step.

    In ONNX an ``LSTM`` or ``GRU`` a layer, of weights that are computed once, when a session is made. In the profile
    ``fast``, an LSTM whose matrices are all int8 is a ``DynamicQuantizeLSTM``, which multiplies integers: inputs and
    states are then rounded to 8 bits, one scale a call and a step.

    Args:
        cell: ``lstm`` or ``gru``.
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as torch's.
    """

    kind: ClassVar[str] = "recurrent"

    def __init__(
        self,
        cell: Literal["lstm", "gru"],
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        if cell not in _GATES:
            raise ValueError(f"a cell is lstm or gru, not {cell!r}")
        self.cell, self.input_size, self.hidden_size, self.num_layers = cell, input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, dropout, bidirectional
        for number, name in enumerate(self.names):
            layer = number // (2 * self.directions)
            columns = hidden_size if number % 2 else input_size if layer == 0 else hidden_size * self.directions
            self.add_module(name, nn.Linear(columns, _GATES[cell] * hidden_size, bias))

    @classmethod
    def from_module(cls, module: nn.RNNBase) -> Recurrent:
        """Of the very parameters of ``module``."""
        names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
        with torch.device("meta"):
            layer = cls(CELLS[type(module)], **{name: getattr(module, name) for name in names})
        for name in layer.names:
            linear = cast(nn.Linear, layer.get_submodule(name))
            linear.weight = getattr(module, name)
            if module.bias:
                linear.bias = getattr(module, name.replace("weight", "bias"))
        return layer.train(module.training)

    def arguments(self) -> dict[str, Any]:
        return {
            "cell": self.cell,
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "bias": self.bias,
            "batch_first": self.batch_first,
            "dropout": self.dropout,
            "bidirectional": self.bidirectional,
        }

    @property
    def directions(self) -> int:
        """D."""
        return 1 + self.bidirectional

    @property
    def names(self) -> list[str]:
        """Names of the matrices, layer by layer, direction by direction, inputs before states."""
        return _names(self.num_layers, self.bidirectional)

    @property
    def matrices(self) -> list[Any]:
        """The layers that hold the matrices, in the order of ``names``."""
        return [self.get_submodule(name) for name in self.names]

    @property
    def watched(self) -> bool:
        """Whether hooks wait for calls of the matrices."""
        return any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.matrices)

    @property
    def weight(self) -> Tensor:
        """The matrix (gH, I) on the inputs of the first layer."""
        return cast(Tensor, self.matrices[0].weight)

    def flatten_parameters(self) -> None:
        """Nothing to do: the weights are computed anew in each call."""

    def forward(self, input: Tensor | PackedSequence, hx: State | None = None) -> tuple[Tensor | PackedSequence, State]:
        """(T, B, I), or (B, T, I) with ``batch_first``, or (T, I), or packed -> the same with D·H, and last states."""
        if isinstance(input, PackedSequence):
            data, state = self._run(input.data, input.batch_sizes, _sorted(hx, input.sorted_indices))
            packed = PackedSequence(data, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
            return packed, cast(State, _sorted(state, input.unsorted_indices))
        single = input.dim() == 2
        time_first = not self.batch_first or single
        x = input.unsqueeze(1) if single else input if time_first else input.transpose(0, 1)
        if single and hx is not None:
            hx = _each(hx, lambda part: part.unsqueeze(1))
        if exporting():
            output, state = self.nodes(x, None, hx)
        else:
            sizes = torch.full((x.shape[0],), x.shape[1])
            data, state = self._run(x.reshape(-1, x.shape[-1]), sizes, hx)
            output = data.unflatten(0, x.shape[:2])
        if single:
            return output.squeeze(1), _each(state, lambda part: part.squeeze(1))
        return output if time_first else output.transpose(0, 1), state

    def _run(self, data: Tensor, sizes: Tensor, hx: State | None) -> tuple[Tensor, State]:
        """Packed (N, I) -> packed (N, D·H), and the last states."""
        count = int(sizes[0])
        if hx is None:
            zeros = data.new_zeros(self.num_layers * self.directions, count, self.hidden_size)
            hx = (zeros, zeros) if self.cell == "lstm" else zeros
        layers = self.matrices
        if self.watched:
            dropout = self.dropout if self.training else 0.0
            return recurrent_steps.run(self.cell, layers, self.directions, data, sizes, hx, dropout)
        weights = list(self.flat())
        settings = (weights, self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        if self.cell == "lstm":
            output, hidden, cell = torch._VF.lstm(data, sizes, cast(tuple[Tensor, Tensor], hx), *settings)
            return output, (hidden, cell)
        output, hidden = torch._VF.gru(data, sizes, cast(Tensor, hx), *settings)
        return output, hidden

    def flat(self) -> Iterator[Tensor]:
        """Weights and biases in the order of torch's kernel."""
        layers = self.matrices
        for inputs, states in zip(layers[::2], layers[1::2], strict=True):
            # A lazy matrix is built by this; a parameter stays what it is.
            yield inputs.weight.contiguous()
            yield states.weight.contiguous()
            if self.bias:
                yield inputs.bias
                yield states.bias

    def shape(self) -> Shape:
        """What the nodes of ONNX must know."""
        return Shape(self.cell, self.hidden_size, self.num_layers, self.directions)

    def nodes(self, x: Tensor, lengths: Tensor | None, hx: State | None = None) -> tuple[Tensor, State]:
        """(T, B, I) and lengths (B,) -> (T, B, D·H), 0 behind the end of a sequence, and the last states; in ONNX."""
        return self.contrib_onnx(x, lengths, hx)

    def contrib_onnx(self, x: Tensor, lengths: Tensor | None, hx: State | None) -> tuple[Tensor, State]:
        """The node of integer products where ONNX Runtime has one, else the standard one."""
        layers = self.matrices
        if self.cell == "lstm" and all(isinstance(layer, Int8Linear) for layer in layers):
            codes = [(layer.weight_codes, layer.weight_scale) for layer in layers]
            return recurrent_onnx.integer_nodes(self.shape(), codes, self._biases(), x, lengths, hx)
        return self.standard_onnx(x, lengths, hx)

    def standard_onnx(self, x: Tensor, lengths: Tensor | None, hx: State | None) -> tuple[Tensor, State]:
        """The node of every runtime, of weights that are computed when a session is made."""
        weights = [layer.weight.to(x.dtype) for layer in self.matrices]
        return recurrent_onnx.float_nodes(self.shape(), weights, self._biases(), x, lengths, hx)

    def _biases(self) -> list[Tensor] | None:
        return [layer.bias for layer in self.matrices] if self.bias else None

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.arguments().items())


def _each(state: State, change: Any) -> State:
    return change(state) if isinstance(state, Tensor) else (change(state[0]), change(state[1]))


def _sorted(state: State | None, order: Tensor | None) -> State | None:
    if state is None or order is None:
        return state
    return _each(state, lambda part: part.index_select(1, order))
