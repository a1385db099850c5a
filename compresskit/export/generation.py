"""Decoders: the first pass over the prompt, and the step that goes on from a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from compresskit.checkpoint.skeleton import model_dtype
from compresskit.export.graph import (
    BATCH,
    PAST,
    SAMPLE_BATCH,
    SAMPLE_LENGTH,
    SEQUENCE,
    TOTAL,
    Dimensions,
    Task,
    positions,
    sample_inputs,
)

STEP = "decoder_with_past"
"""Name of the graph of one more token."""

PARTS = ("key", "value")
"""Of a layer of a cache, as names have them."""

_IDS = ["input_ids", "attention_mask"]


def prefill_task(model: PreTrainedModel) -> Task:
    """The whole prompt: ``logits`` (B, T, V), and keys and values (B, H, T, D) of each layer as ``present.N.…``."""
    module = _Prefill(model).eval()
    sample = sample_inputs(model, _IDS, SAMPLE_BATCH, SAMPLE_LENGTH)
    layers = len(_cache_of(model, sample).layers)
    outputs = {"logits": (BATCH, SEQUENCE, None), **_cache_names("present", layers, SEQUENCE)}
    return Task("model", module, sample, dict.fromkeys(_IDS, (BATCH, SEQUENCE)), outputs, _renamed(layers))


def decode_task(model: PreTrainedModel) -> Task:
    """One more token: ``input_ids`` (B, 1), ``attention_mask`` (B, P + 1), the cache in and the longer cache out."""
    module = _Decode(model).eval()
    sample = decode_inputs(model, SAMPLE_BATCH, SAMPLE_LENGTH)
    layers = (len(sample) - 2) // 2
    inputs: dict[str, Dimensions] = {"input_ids": (BATCH, None), "attention_mask": (BATCH, TOTAL)}
    outputs = {"logits": (BATCH, None, None), **_cache_names("present", layers, TOTAL)}
    inputs.update(_cache_names("past_key_values", layers, PAST))
    return Task(STEP, module, sample, inputs, outputs, _renamed(layers), step=True)


def decode_inputs(
    model: PreTrainedModel, batch: int, past: int, *, padded: bool = False, seed: int = 0
) -> dict[str, Tensor]:
    """The inputs of a step after ``past`` random tokens; with ``padded``, prompts shorter on the left."""
    whole = sample_inputs(model, _IDS, batch, past + 1, padded=padded, seed=seed)
    whole["attention_mask"] = whole["attention_mask"].flip(1)
    prompt = {name: tensor[:, :past] for name, tensor in whole.items()}
    found = {"input_ids": whole["input_ids"][:, past:], "attention_mask": whole["attention_mask"]}
    for index, (keys, values) in enumerate(keys_and_values(_cache_of(model, prompt))):
        found[f"past_key_{index}"], found[f"past_value_{index}"] = keys, values
    return found


class _Layer(DynamicLayer):
    """Starts with the first keys and values; the stock one joins them to nothing, which no ONNX operator does."""

    def update(self, key_states: Tensor, value_states: Tensor, *arguments: Any, **more: Any) -> tuple[Tensor, Tensor]:
        if self.is_initialized:
            return super().update(key_states, value_states, *arguments, **more)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[-2]


def empty_cache() -> DynamicCache:
    """A cache whose growth can be traced."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = _Layer
    return cache


class _Prefill(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        more = positions(self.model, attention_mask)
        result = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=empty_cache(), use_cache=True, **more
        )
        return _with_cache(result.logits, result.past_key_values)


class FloatInputs(nn.Module):
    """A part of ``model`` that is traced with float inputs: a cache, or an encoder's states."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        # transformers' exporter casts float inputs to the type of the first parameter, which may be a float16 scale.
        self.input_type = nn.Parameter(torch.empty(0, dtype=model_dtype(model)))
        self.model, self.config = model, model.config


class _Decode(FloatInputs):
    def forward(self, input_ids: Tensor, attention_mask: Tensor, **past: Tensor) -> dict[str, Tensor]:
        cache = empty_cache()
        for index in range(len(past) // 2):
            cache.update(past[f"past_key_{index}"], past[f"past_value_{index}"], index)
        more = positions(self.model, attention_mask, input_ids.shape[1])
        result = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **more
        )
        return _with_cache(result.logits, result.past_key_values)


def _with_cache(logits: Tensor, cache: DynamicCache) -> dict[str, Tensor]:
    found = {"logits": logits}
    for index, (keys, values) in enumerate(keys_and_values(cache)):
        found[f"present_key_{index}"], found[f"present_value_{index}"] = keys, values
    return found


@torch.no_grad()
def _cache_of(model: PreTrainedModel, prompt: dict[str, Tensor]) -> DynamicCache:
    more = positions(model, prompt["attention_mask"])
    cache: DynamicCache = model(**prompt, **more, past_key_values=empty_cache(), use_cache=True).past_key_values
    return cache


def keys_and_values(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Of each layer, (B, H, T, D) both."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def _cache_names(prefix: str, layers: int, length: str) -> dict[str, Dimensions]:
    return {f"{prefix}.{index}.{part}": (BATCH, None, length, None) for index in range(layers) for part in PARTS}


def _renamed(layers: int) -> dict[str, str]:
    """Traced name -> name in the file, of caches in and out."""
    return {
        f"{traced}_{part}_{index}": f"{name}.{index}.{part}"
        for traced, name in (("past", "past_key_values"), ("present", "present"))
        for index in range(layers)
        for part in PARTS
    }
