"""Inputs for the attention kernels, and models whose attention is replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from compresskit.core import anatomy
from compresskit.nn import attention
from tests import models

WINDOW = {"kind": "window", "window": 3, "global_tokens": 0}
LINEAR = {"kind": "linear", "feature_map": "elu"}


def qkv(batch: int, heads: int, kv_heads: int, queries: int, keys: int, dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Random query (B, H, Q, D), key and value (B, H', K, D), laid out in memory as a model's projections are."""
    return (
        torch.randn(batch, queries, heads, dim).transpose(1, 2),
        torch.randn(batch, keys, kv_heads, dim).transpose(1, 2),
        torch.randn(batch, keys, kv_heads, dim).transpose(1, 2),
    )


def padding(side: str, batch: int, keys: int) -> Tensor | None:
    """(B, K) bool: row b lacks 2·b tokens on that side, as far as it has them; None for ``none``."""
    if side == "none":
        return None
    real = torch.ones(batch, keys, dtype=torch.bool)
    for row in range(batch):
        missing = min(2 * row, keys - 1)
        real[row, keys - missing :] &= side != "right"
        real[row, :missing] &= side != "left"
    return real


def replaced(
    model: PreTrainedModel, settings: dict[str, Any], chosen: Callable[[int], bool] = lambda _: True
) -> PreTrainedModel:
    """``model``, with those self-attentions replaced whose number is chosen."""
    for number, part in enumerate(anatomy.of(model).attentions):
        if not part.cross and chosen(number):
            attention.install(model, model.get_submodule(part.path), settings)
    return model


def left_padded(name: str, batch: int = 3, length: int = 20) -> dict[str, Tensor]:
    """Inputs whose padding, of another length in each row, stands on the left."""
    inputs = models.inputs(name, batch=batch, length=length, padded=True)
    inputs.pop("decoder_input_ids", None)
    for row in range(batch):
        missing = int((inputs["attention_mask"][row] == 0).sum())
        for key in ("input_ids", "attention_mask"):
            inputs[key][row] = inputs[key][row].roll(missing)
    return inputs


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor that is made while it is active; views of others don't count."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in pytree.tree_leaves(args) if isinstance(each, Tensor)}
        for each in pytree.tree_leaves(result):
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in given:
                self.numel = max(self.numel, each.untyped_storage().nbytes() // each.element_size())
        return result
