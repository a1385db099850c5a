"""What methods that make a model smaller in its sizes share: what can't be cut, how much goes, and what that saves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from transformers import PreTrainedModel

from compresskit.core.anatomy import FeedForward
from compresskit.core.surgery import aliases, tied_elsewhere
from compresskit.core.weights import view, view_of

Choice = Literal["spread", "first", "last", "ends"]


def refuse_unplain(model: PreTrainedModel, paths: Sequence[str]) -> str | None:
    """Why the matrices at ``paths`` can't be cut: one was replaced by an earlier step, or is shared."""
    for path in paths:
        module = model.get_submodule(path)
        if view_of(path, module) is None:
            return f"an earlier step made {path} a {type(module).__name__}, which can't be cut: prune first"
        shared = shared_with(model, path)
        if shared is not None:
            return f"{path} shares parameters with {shared}: prune before sharing"
    return None


def shared_with(model: PreTrainedModel, path: str) -> str | None:
    """A module elsewhere that uses parameters of the module at ``path``, or None."""
    found = [*aliases(model, path), *tied_elsewhere(model, path)]
    return found[0] if found else None


def kept_count(total: int, keep: float, round_to: int = 1) -> int:
    """How many of ``total`` to keep: the nearest multiple of ``round_to``, the lower of two; at least one multiple."""
    # The slack keeps 0.35 of 10 at 3.5, which binary fractions would make more.
    count = math.ceil(keep * total / round_to - 0.5 - 1e-9)
    return min(total, max(1, count) * round_to)


def chosen(choice: Choice, count: int, total: int) -> list[int]:
    """``count`` of ``total`` blocks, ascending.

    ``spread`` takes the first, the last, and evenly between them; ``ends`` the first ones and the last ones, of an odd
    number one more of the first.
    """
    count = min(count, total)
    if choice == "first":
        return list(range(count))
    if choice == "last":
        return list(range(total - count, total))
    if choice == "ends":
        return [*range(count - count // 2), *range(total - count // 2, total)]
    return [round(number * (total - 1) / max(1, count - 1)) for number in range(count)]


def block_bytes(model: PreTrainedModel, path: str) -> int:
    """Of the parameters of the block at ``path``."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.get_submodule(path).parameters())


def neuron_bytes(model: PreTrainedModel, ffn: FeedForward) -> int:
    """Of one neuron: a row of each input with its bias, a column of the output."""
    inputs = [view(model, path) for path in ffn.inputs]
    output = view(model, ffn.output)
    saved = sum((plain.in_features + (plain.bias is not None)) * plain.weight.element_size() for plain in inputs)
    return saved + output.out_features * output.weight.element_size()
