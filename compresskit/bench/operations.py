"""Multiply-accumulates of one forward, module by module, by formula from the shapes that it was seen to have.

Counted are linear maps (rows x O x I, a low-rank one by its factors), those whose matrices are parameters of a module
(LSTM and GRU, fused experts, XLNet's projections) too, and attention (scores and weighted values). Norms, activations,
softmax, additions, lookups and dequantization are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention
from transformers.pytorch_utils import Conv1D

from compresskit.core import anatomy
from compresskit.core.anatomy import Attention
from compresskit.core.weights import parts
from compresskit.nn.base import CompressedLayer
from compresskit.nn.experts import FUSED
from compresskit.nn.recurrent import CELLS
from compresskit.nn.xlnet import XLNetAttention


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
    for path, module in model.named_modules():
        if type(module) in _CALLS:

            def called(module: nn.Module, args: Any, options: Any, _output: Any, path: str = path) -> None:
                for name, macs in _CALLS[type(module)](module, args, options).items():
                    inside = f"{path}.{name}" if name else path
                    found[inside] = found.get(inside, 0) + macs

            handles.append(module.register_forward_hook(called, with_kwargs=True))
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


def attention_paths(model: PreTrainedModel) -> set[str]:
    """Paths of the modules whose own operations are those of attention."""
    stock = {path for path, module in model.named_modules() if isinstance(module, _XLNET)}
    return stock | {part.path for part in anatomy.of(model).attentions}


def _of_cell(module: Any, args: Any, _options: Any) -> dict[str, int]:
    """Of an LSTM or GRU: every matrix once a token."""
    tokens = args[0].data.numel() // module.input_size  # also of a packed sequence
    return {part.name: tokens * part.weight.numel() for part in parts("", module)}


def _of_experts(module: Any, args: Any, _options: Any) -> dict[str, int]:
    """Of a fused bank: the matrices of one expert for each token and expert that the router chose."""
    chosen = int((args[1] < module.num_experts).sum())
    return {"": chosen * sum(part.weight.numel() for part in parts("", module)) // module.num_experts}


def _of_router(module: Any, args: Any, _options: Any) -> dict[str, int]:
    return {"": args[0].numel() // module.weight.shape[1] * module.weight.numel()}


def _of_xlnet(module: Any, args: Any, options: Any) -> dict[str, int]:
    """Of relative attention on (T, B, H): projections by name, scores by content and by position, weighted values."""
    content, query, _, _, positions = args[:5]
    memory = options.get("mems")
    batch = content.shape[1]
    streams = [content] if query is None else [content, query]
    rows = sum(stream.shape[0] for stream in streams)
    keys = content.shape[0] + (memory.shape[0] if memory is not None and memory.dim() > 1 else 0)
    seen = {"q": rows * batch, "k": keys * batch, "v": keys * batch, "o": rows * batch}
    seen["r"] = positions.shape[0] * positions.shape[1]
    found = {part.name: seen[part.name] * part.weight.numel() for part in parts("", module)}
    width = module.r_w_bias.numel()
    return {**found, "": rows * batch * (2 * keys + positions.shape[0]) * width}


_XLNET = (XLNetRelativeAttention, XLNetAttention)
_CALLS: dict[type[nn.Module], Callable[[Any, Any, Any], dict[str, int]]] = {
    **dict.fromkeys(CELLS, _of_cell),
    **dict.fromkeys(FUSED, _of_experts),
    **dict.fromkeys(_XLNET, _of_xlnet),
    MixtralTopKRouter: _of_router,
}
"""By the class of a module: its arguments -> MACs of a call, by the name of a matrix in it, or "" for its own."""


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
