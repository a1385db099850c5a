"""Parameters and operations of a model as it was loaded, by formula from the shapes of its layers.

One multiplication with its addition is one MAC and two FLOPs. O and I are the rows and columns of a matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from compresskit.bench.operations import attention_paths, operations
from compresskit.errors import ModelError
from compresskit.export.graph import accepts
from compresskit.nn.base import CompressedLayer
from compresskit.nn.low_rank import LowRankLinear

NOT_COUNTED = (
    "norms", "activations", "softmax", "bias and residual additions", "table lookups", "dequantization", "pooling",
)  # fmt: skip


def parameters(model: PreTrainedModel) -> dict[str, float]:
    """How many there are, each shared one once.

    ``logical``: numbers that the layers stand for; ``stored``: elements of all tensors, scales included; ``nonzero``:
    of the stored ones; ``bytes`` of all tensors; ``effective_bits``: eight times bytes over logical.
    """
    logical = 0
    seen: set[int] = set()
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


def macs(model: PreTrainedModel, batch: int, tokens: int) -> dict[str, int]:
    """Multiply-accumulates of one forward pass over ``batch`` rows of ``tokens`` tokens.

    ``effective``: of the factors that are multiplied; ``dense``: had every low-rank matrix been whole; ``attention``:
    of scores and weighted values, contained in both. Of an encoder and a decoder both are given ``tokens``.

    Raises:
        ModelError: CK-M031, the architecture's attention isn't known.
    """
    ids = torch.zeros(batch, tokens, dtype=torch.long, device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder and accepts(model, "decoder_input_ids"):
        inputs["decoder_input_ids"] = ids
    found = operations(model, inputs)
    attentions = attention_paths(model)
    effective = sum(found.values())
    dense = effective
    for path, module in model.named_modules():
        if not isinstance(module, LowRankLinear):
            continue
        factors = found.get(f"{path}.down", 0) + found.get(f"{path}.up", 0)
        dense += factors * module.out_features * module.in_features // _factor_size(module) - factors
    return {"dense": dense, "effective": effective, "attention": sum(found.get(path, 0) for path in attentions)}


def _factor_size(module: LowRankLinear) -> int:
    """Multiplications of one row: R x I and O x R."""
    return module.rank * (module.in_features + module.out_features)


def counts(model: PreTrainedModel, batch: int, tokens: int) -> dict[str, Any]:
    """Both, JSON-able; ``macs`` is None with the reason where the architecture isn't known."""
    found: dict[str, Any] = {"parameters": parameters(model), "not_counted": list(NOT_COUNTED)}
    try:
        found["macs"] = macs(model, batch, tokens)
    except ModelError as error:
        found |= {"macs": None, "reason": error.what}
    return found
