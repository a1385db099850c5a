"""An LSTM or GRU on sequences that are padded on the right: packed, as rectangles for training, and in ONNX.

Shapes: B sequences, T steps, I inputs, H hidden size, D directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from compresskit.nn import recurrent_onnx
from compresskit.nn.base import exporting
from compresskit.nn.recurrent import CELLS, Recurrent, State, matrix_names
from compresskit.nn.recurrent_onnx import Shape


def run_padded(module: nn.Module, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Run an LSTM or GRU (torch's, batch first, or ``Recurrent``) on sequences that are padded on the right.

    The backward direction begins at the last token of each sequence, not in its padding. Also while a model is traced
    for ONNX, where packed sequences can't be written.

    Args:
        x: (B, T, I). mask: (B, T), 1 for tokens.

    Returns:
        The states (B, T, D·H), 0 in the padding, and the last states of the last layer's directions, (B, D·H).
    """
    lengths = mask.sum(1).clamp(min=1)
    if exporting():
        output, hidden = _nodes(module, x.transpose(0, 1), lengths.to(torch.int32))
    elif torch.is_grad_enabled() and _rectangular(module):
        return _run_rectangles(cast(nn.RNNBase, module), x, lengths)
    else:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        found, state = module(packed)
        output, _ = pad_packed_sequence(cast(PackedSequence, found), batch_first=True, total_length=x.shape[1])
        hidden = _hidden(state)
    directions = 1 + int(cast(nn.RNNBase, module).bidirectional)
    return output, hidden[-directions:].transpose(0, 1).flatten(1)


def _nodes(module: nn.Module, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(T, B, I) -> (B, T, D·H), and last states (L·D, B, H)."""
    if isinstance(module, Recurrent):
        output, state = module.nodes(x, lengths)
    else:
        module = cast(nn.RNNBase, module)
        names = matrix_names(module)
        shape = Shape(CELLS[type(module)], module.hidden_size, module.num_layers, 1 + module.bidirectional)
        biases = [getattr(module, name.replace("weight", "bias")) for name in names] if module.bias else None
        weights = [getattr(module, name) for name in names]
        output, state = recurrent_onnx.float_nodes(shape, weights, biases, x, lengths, None)
    return output.transpose(0, 1), _hidden(state)


def _hidden(state: State) -> Tensor:
    return state[0] if isinstance(state, tuple) else state


def _rectangular(module: nn.Module) -> bool:
    if isinstance(module, Recurrent):
        return not module.watched
    return bool(matrix_names(cast(nn.RNNBase, module)))


def _run_rectangles(module: nn.RNNBase | Recurrent, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """As ``run_padded``, layer by layer and direction by direction, through the padding: for training.

    torch's kernel for packed sequences cuts each step's tokens out of the batch, and the gradient of each cut has the
    batch's size: its time grows with the square of T. Without gradients it is the faster one.
    """
    cell = module.cell if isinstance(module, Recurrent) else CELLS[type(module)]
    kernel: Any = torch._VF.lstm if cell == "lstm" else torch._VF.gru
    places, ends = torch.arange(x.shape[1], device=x.device), lengths.unsqueeze(1)
    # Tokens change places with tokens, and padding with padding: twice, and all is where it was.
    turned = (ends - 1 - places).remainder(x.shape[1]).unsqueeze(-1)
    zeros = x.new_zeros(1, len(x), module.hidden_size)
    weights, found = _weights(module), [x]
    for layer in range(module.num_layers):
        x = torch.cat(found, -1)
        if layer and module.dropout:
            x = F.dropout(x, module.dropout, module.training)
        found = []
        for backward in (False, True)[: 1 + module.bidirectional]:
            given = x.gather(1, turned.expand_as(x)) if backward else x
            begin = (zeros, zeros) if cell == "lstm" else zeros
            output = kernel(given, begin, next(weights), module.bias, 1, 0.0, module.training, False, True)[0]
            found.append(output.gather(1, turned.expand_as(output)) if backward else output)
    last = [
        found[0].gather(1, (ends - 1).unsqueeze(-1).expand(-1, -1, module.hidden_size)),
        *(o[:, :1] for o in found[1:]),
    ]
    inside = (places < ends).unsqueeze(-1)
    return torch.cat(found, -1) * inside, torch.cat(last, -1).squeeze(1)


def _weights(module: nn.RNNBase | Recurrent) -> Iterator[list[Tensor]]:
    """Of each direction, layer by layer, as torch's kernel takes them."""
    size = 4 if module.bias else 2
    flat = list(module.flat()) if isinstance(module, Recurrent) else cast(list[Tensor], module._flat_weights)
    for start in range(0, len(flat), size):
        yield flat[start : start + size]
