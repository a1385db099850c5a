"""What the methods that make a student of the model itself share: which of its blocks the student has."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from compresskit.core import anatomy
from compresskit.core.cutting import Choice, block_bytes, chosen, shared_with

Layers = int | tuple[int, ...] | None


def kept_blocks(layers: Layers, choice: Choice, total: int) -> list[int]:
    """Blocks of a stack of ``total`` that stay: those listed, or so many by ``choice``; half of them if None."""
    if isinstance(layers, tuple):
        return [index for index in layers if index < total]
    return chosen(choice, max(1, total // 2) if layers is None else layers, total)


def why_not(model: PreTrainedModel, layers: Layers, choice: Choice) -> str | None:
    """Why the other blocks can't go, or None."""
    body = anatomy.of(model)
    if not body.blocks:
        return f"{type(model).__name__} has no transformer blocks"
    for stack in body.stacks:
        total = len(stack.blocks)
        if isinstance(layers, tuple) and max(layers) >= total:
            return f"block {max(layers)} of the {stack.name} doesn't exist: it has {total}, counted from 0"
        kept = set(kept_blocks(layers, choice, total))
        for block in stack.blocks:
            if block.index in kept:
                continue
            if block.pinned is not None:
                return f"block {block.index} of the {stack.name} can't go: {block.pinned}"
            other = shared_with(model, block.path)
            if other is not None:
                return f"block {block.index} shares parameters with {other}: shorten before sharing"
    return None


def gone(model: PreTrainedModel, layers: Layers, choice: Choice) -> list[anatomy.Block]:
    """The blocks that go, of all stacks."""
    found = []
    for stack in anatomy.of(model).stacks:
        kept = set(kept_blocks(layers, choice, len(stack.blocks)))
        found += [block for block in stack.blocks if block.index not in kept]
    return found


def bytes_of(model: PreTrainedModel, blocks: Sequence[anatomy.Block]) -> int:
    """Of the parameters of ``blocks``."""
    return sum(block_bytes(model, block.path) for block in blocks)
