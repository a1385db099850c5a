"""Parameters and operations of a model as it was loaded, by formula from the shapes of its layers.

One multiplication with its addition is one MAC and two FLOPs. O and I are the rows and columns of a matrix.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compresskit.core import anatomy
from compresskit.errors import ModelError
from compresskit.nn.base import CompressedLayer

NOT_COUNTED = (
    "norms", "activations", "softmax", "bias and residual additions", "table lookups", "dequantization", "pooling",
)  # fmt: skip


def parameters(model: PreTrainedModel) -> dict[str, float]:
    """How many there are, each shared one once.

    ``logical``: numbers that the layers stand for; ``stored``: elements of all tensors, scales included; ``nonzero``:
    of the stored ones; ``bytes`` of all tensors; ``effective_bits``: eight times bytes over logical.
    """
    logical, seen = 0, set()
    for module in model.modules():
        own = [tensor for tensor in module.parameters(recurse=False) if id(tensor) not in seen]
        seen.update(id(tensor) for tensor in own)
        if isinstance(module, CompressedLayer):
            logical += module.parameter_count() if own else 0
        else:
            logical += sum(tensor.numel() for tensor in own)
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *_persistent_buffers(model))}.values()
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return {
        "logical": logical,
        "stored": sum(tensor.numel() for tensor in tensors),
        "nonzero": sum(int((tensor != 0).sum()) for tensor in tensors),
        "bytes": held,
        "effective_bits": 8 * held / logical if logical else 0.0,
    }


def _persistent_buffers(model: nn.Module) -> list[Any]:
    names = set(model.state_dict())
    return [buffer for name, buffer in model.named_buffers() if name in names]


def macs(model: PreTrainedModel, batch: int, tokens: int) -> dict[str, Any]:
    """Multiply-accumulates of one forward pass over ``batch`` rows of ``tokens`` tokens.

    ``effective``: of the factors that are multiplied; ``dense``: had every low-rank matrix been whole; ``attention``:
    of scores and weighted values, contained in both. Of an encoder and a decoder both are taken to see ``tokens``.

    Raises:
        ModelError: CK-M031, the architecture's attention isn't known.
    """
    dense = effective = 0
    heads = _per_row(model)
    inside: set[int] = set()
    for path, module in model.named_modules():
        if id(module) in inside:
            continue
        shape = _shape(module)
        if shape is None:
            continue
        rows = batch if path in heads else batch * tokens
        dense += rows * shape[0] * shape[1]
        parts = [part for part in (getattr(module, name, None) for name in ("down", "up")) if part is not None]
        factors = [found for part in parts if (found := _shape(part)) is not None]
        inside.update(id(part) for part in module.modules())
        effective += rows * sum(out * into for out, into in factors or [shape])
    attention = batch * sum(_attention(model, part, tokens) for part in anatomy.of(model).attentions)
    return {"dense": dense + attention, "effective": effective + attention, "attention": attention}


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """(O, I) of a linear map, else None."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, Conv1D):
        return int(module.weight.shape[1]), int(module.weight.shape[0])
    if isinstance(module, CompressedLayer) and hasattr(module, "out_features") and hasattr(module, "in_features"):
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
    return None


def _per_row(model: PreTrainedModel) -> set[str]:
    """Matrices that see one vector a text: poolers and heads of classifiers."""
    names = ("pooler", "classifier", "score", "pre_classifier")
    single = "TokenClassification" not in type(model).__name__
    return {
        path
        for path, _ in model.named_modules()
        if any(part in names for part in path.split(".")) and (single or "pooler" in path.split("."))
    }


def _attention(model: PreTrainedModel, part: Any, tokens: int) -> int:
    """MACs of one attention for one row of tokens; a window and a linear attention see less than all pairs."""
    settings = getattr(model.get_submodule(part.path), "compresskit_attention", None) or {}
    width = part.heads * part.head_dim
    if settings.get("kind") == "linear":
        return 2 * tokens * width * int(part.head_dim)
    seen = tokens
    if settings.get("kind") == "window":
        reach = int(settings["window"]) * (1 if part.causal else 2) + 1 + int(settings.get("global_tokens", 0))
        seen = min(tokens, reach)
    return 2 * tokens * seen * width


def counts(model: PreTrainedModel, batch: int, tokens: int) -> dict[str, Any]:
    """Both, JSON-able; ``macs`` is None with the reason where the architecture isn't known."""
    found: dict[str, Any] = {"parameters": parameters(model), "not_counted": list(NOT_COUNTED)}
    try:
        found["macs"] = macs(model, batch, tokens)
    except ModelError as error:
        found |= {"macs": None, "reason": error.what}
    return found
