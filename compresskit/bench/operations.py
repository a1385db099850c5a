"""Multiply-accumulates of one forward, module by module, by formula from the shapes that it was seen to have.

Counted are linear maps (rows x O x I, a low-rank one by its factors) and attention (scores and weighted values). Norms,
activations, softmax, additions, lookups and dequantization are not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compresskit.core import anatomy
from compresskit.core.anatomy import Attention
from compresskit.nn.base import CompressedLayer


def operations(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, int]:
    """Path -> MACs of its own, in one forward over ``inputs``; a module that runs several times counts each time.

    An attention's own are those of scores and weighted values; its projections have paths of their own.
    """
    found: dict[str, int] = {}
    rows: dict[str, int] = {}
    shapes = {path: shape for path, module in model.named_modules() if (shape := linear_shape(module)) is not None}
    handles = []
    for path, (out, into) in shapes.items():

        def seen(
            _module: nn.Module, _args: Any, output: torch.Tensor, path: str = path, out: int = out, into: int = into
        ) -> None:
            rows[path] = output.numel() // out
            found[path] = found.get(path, 0) + rows[path] * out * into

        handles.append(model.get_submodule(path).register_forward_hook(seen))
    batch = next(iter(inputs.values())).shape[0]
    attentions = {part.path: part for part in anatomy.of(model).attentions}
    for path, part in attentions.items():

        def attended(module: nn.Module, _args: Any, _output: Any, part: Attention = part) -> None:
            queries, keys = (_rows_of(rows, found_path.path) // batch for found_path in (part.query, part.key))
            settings = getattr(module, "compresskit_attention", None) or {}
            found[part.path] = found.get(part.path, 0) + batch * attention_macs(part, settings, queries, keys)

        handles.append(model.get_submodule(path).register_forward_hook(attended))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _rows_of(rows: dict[str, int], path: str) -> int:
    """Rows that the matrix at ``path`` gave last; of a low-rank one those of its second factor."""
    return rows.get(path) or next(count for name, count in rows.items() if name.startswith(f"{path}."))


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(O, I) of a linear map that multiplies by itself, else None: a low-rank one leaves that to its factors."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, Conv1D):
        return int(module.weight.shape[1]), int(module.weight.shape[0])
    if isinstance(module, CompressedLayer) and hasattr(module, "out_features") and not list(module.children()):
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
    return None


def attention_macs(part: Attention, settings: dict[str, Any], queries: int, keys: int) -> int:
    """MACs of one attention for one row of ``queries`` tokens that look at ``keys``; a window sees fewer pairs.

    Args:
        settings: of a replaced attention: ``kind`` linear or window; empty for the softmax over all pairs.
    """
    width = part.heads * part.head_dim
    if settings.get("kind") == "linear":
        return (queries + keys) * width * part.head_dim
    if settings.get("kind") == "window":
        reach = int(settings["window"]) * (1 if part.causal else 2) + 1 + int(settings.get("global_tokens", 0))
        keys = min(keys, reach)
    return 2 * queries * keys * width
