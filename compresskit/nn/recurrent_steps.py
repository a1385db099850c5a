"""An LSTM or GRU step by step, each matrix called as a layer: for hooks that watch what the matrices see.

Shapes: N tokens of a packed batch, B sequences, I inputs, H hidden size, D directions, L layers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def run(
    cell: str, layers: list[Any], directions: int, data: Tensor, sizes: Tensor, state: Any, dropout: float
) -> tuple[Tensor, Any]:
    """What torch's kernel computes, in its equations.

    Args:
        cell: ``lstm`` or ``gru``. layers: of the matrices; inputs, states, direction by direction, layer by layer.
        data: (N, I), packed: the tokens of step 0 of all sequences, longest first, then those of step 1.
        sizes: sequences that have each step.
        state: (L·D, B, H), or two of them for an LSTM.
        dropout: between layers.

    Returns:
        (N, D·H), and the states after the last step of each sequence.
    """
    parts = list(state) if cell == "lstm" else [state]
    step = _lstm if cell == "lstm" else _gru
    last: list[list[Tensor]] = []
    for start in range(0, len(layers), 2 * directions):
        matrices = layers[start : start + 2 * directions]
        # All directions first: a hook sees that they read the same tensor.
        projected = [matrix(data) for matrix in matrices[::2]]
        outputs = []
        for direction in range(directions):
            begin = [part[start // 2 + direction] for part in parts]
            output, end = _direction(
                step, matrices[2 * direction + 1], projected[direction], sizes.tolist(), begin, reverse=direction == 1
            )
            outputs.append(output)
            last.append(end)
        data = torch.cat(outputs, -1)
        if dropout and start + 2 * directions < len(layers):
            data = F.dropout(data, dropout)
    found = [torch.stack(part) for part in zip(*last, strict=True)]
    return data, tuple(found) if cell == "lstm" else found[0]


def _direction(
    step: Any, matrix: Any, projected: Tensor, sizes: list[int], begin: list[Tensor], *, reverse: bool
) -> tuple[Tensor, list[Tensor]]:
    chunks = projected.split(sizes)
    order = range(len(sizes))[::-1] if reverse else range(len(sizes))
    outputs: list[Tensor] = [projected] * len(sizes)
    # The states of all sequences; those without the step keep theirs.
    state = begin
    for number in order:
        count = sizes[number]
        found = step(chunks[number], matrix(state[0][:count]), [part[:count] for part in state])
        outputs[number] = found[0]
        state = [torch.cat((new, old[count:])) for new, old in zip(found, state, strict=True)]
    return torch.cat(outputs), state


def _lstm(inputs: Tensor, states: Tensor, state: list[Tensor]) -> list[Tensor]:
    enter, forget, content, leave = (inputs + states).chunk(4, -1)
    cell = forget.sigmoid() * state[1] + enter.sigmoid() * content.tanh()
    return [leave.sigmoid() * cell.tanh(), cell]


def _gru(inputs: Tensor, states: Tensor, state: list[Tensor]) -> list[Tensor]:
    (reset, update, content), (reset_state, update_state, content_state) = inputs.chunk(3, -1), states.chunk(3, -1)
    kept = (update + update_state).sigmoid()
    fresh = (content + (reset + reset_state).sigmoid() * content_state).tanh()
    return [fresh + kept * (state[0] - fresh)]
