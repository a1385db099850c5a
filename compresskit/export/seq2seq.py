"""Encoder-decoders: the encoder once, the first pass of the decoder, and the step that goes on from two caches.

The cache of self-attention grows by a token a step; keys and values of the encoder's states are computed in the first
pass and only read afterwards. Files, inputs and outputs are named as Optimum names them.

Shapes: B batch, S tokens read, T tokens written, P tokens in the cache, H heads, D head dimension, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from compresskit.export.batches import forward_batches
from compresskit.export.generation import PARTS, FloatInputs, empty_cache, keys_and_values
from compresskit.export.graph import (
    BATCH,
    DECODER,
    ENCODER,
    PAST,
    SAMPLE_BATCH,
    SAMPLE_LENGTH,
    SEQUENCE,
    TOTAL,
    Dimensions,
    Task,
    sample_inputs,
)
from compresskit.export.parity import TEXT

ENCODER_FILE, FIRST_FILE, STEP_FILE = "encoder_model", "decoder_model", "decoder_with_past_model"
"""Names of the graphs, and of their files without suffix."""

Batches = Mapping[str, Mapping[str, Tensor]]

_READ = ["input_ids", "attention_mask"]
_SELF, _CROSS = "decoder", "encoder"
_SAMPLE_WRITTEN = 4
_WRITTEN = 6
"""Tokens given to the decoder's first pass in its checks."""


def seq2seq_jobs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, prefix: str
) -> list[tuple[str, Task, Batches]]:
    """The three files to make: name, graph, batches to check it on.

    Args:
        prefix: of the file names.
    """
    read = forward_batches(model, tokenizer, _READ)
    first, step = first_task(model), step_task(model)
    return [
        (f"{prefix}{ENCODER_FILE}.onnx", encoder_task(model), read),
        (f"{prefix}{FIRST_FILE}.onnx", first, {name: _first_inputs(model, batch) for name, batch in read.items()}),
        (f"{prefix}{STEP_FILE}.onnx", step, {n: _step_inputs(model, b) for n, b in read.items() if n != TEXT}),
    ]


def encoder_task(model: PreTrainedModel) -> Task:
    """``input_ids`` and ``attention_mask`` (B, S): ``last_hidden_state`` (B, S, width)."""
    sample = sample_inputs(model, _READ, SAMPLE_BATCH, SAMPLE_LENGTH)
    outputs: dict[str, Dimensions] = {"last_hidden_state": (BATCH, SEQUENCE, None)}
    return Task(ENCODER_FILE, _Encoder(model).eval(), sample, dict.fromkeys(_READ, (BATCH, SEQUENCE)), outputs)


def first_task(model: PreTrainedModel) -> Task:
    """The decoder's first pass.

    ``encoder_attention_mask`` (B, S), ``input_ids`` (B, T) and ``encoder_hidden_states`` (B, S, width): ``logits``
    (B, T, V), and keys and values of each layer, ``present.N.decoder.…`` (B, H, T, D) and ``present.N.encoder.…``
    (B, H, S, D).
    """
    module = _First(model).eval()
    sample = _first_inputs(model, _sample(model), _SAMPLE_WRITTEN)
    layers = _layers_of(module, sample)
    inputs: dict[str, Dimensions] = {
        "encoder_attention_mask": (BATCH, ENCODER),
        "input_ids": (BATCH, DECODER),
        "encoder_hidden_states": (BATCH, ENCODER, None),
    }
    outputs: dict[str, Dimensions] = {"logits": (BATCH, DECODER, None)}
    outputs |= _cache_names("present", layers, {_SELF: DECODER, _CROSS: ENCODER})
    return Task(FIRST_FILE, module, sample, inputs, outputs, _renamed(layers))


def step_task(model: PreTrainedModel) -> Task:
    """One more token.

    ``encoder_attention_mask`` (B, S), ``input_ids`` (B, 1) and ``past_key_values.N.…`` as the first pass or the step
    before gave them: ``logits`` (B, 1, V) and ``present.N.decoder.…`` (B, H, P + 1, D).
    """
    module = _Step(model).eval()
    sample = _step_inputs(model, _sample(model), _SAMPLE_WRITTEN)
    layers = (len(sample) - 2) // 4
    inputs: dict[str, Dimensions] = {"encoder_attention_mask": (BATCH, ENCODER), "input_ids": (BATCH, None)}
    inputs |= _cache_names("past_key_values", layers, {_SELF: PAST, _CROSS: ENCODER})
    outputs: dict[str, Dimensions] = {"logits": (BATCH, None, None)}
    outputs |= _cache_names("present", layers, {_SELF: TOTAL})
    return Task(STEP_FILE, module, sample, inputs, outputs, _renamed(layers), step=True)


class _Encoder(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        found = self.model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        return {"last_hidden_state": found.last_hidden_state}


class _Decoder(FloatInputs):
    def decode(self, ids: Tensor, mask: Tensor, states: Tensor, cache: EncoderDecoderCache) -> Any:
        return self.model(
            decoder_input_ids=ids,
            attention_mask=mask,
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        )


class _First(_Decoder):
    def forward(
        self, encoder_attention_mask: Tensor, input_ids: Tensor, encoder_hidden_states: Tensor
    ) -> dict[str, Tensor]:
        cache = EncoderDecoderCache(empty_cache(), empty_cache())
        result = self.decode(input_ids, encoder_attention_mask, encoder_hidden_states, cache)
        found = {"logits": result.logits}
        for which, part in ((_SELF, cache.self_attention_cache), (_CROSS, cache.cross_attention_cache)):
            found |= _named(which, part)
        return found


class _Step(_Decoder):
    def forward(self, encoder_attention_mask: Tensor, input_ids: Tensor, **past: Tensor) -> dict[str, Tensor]:
        grows, stays = empty_cache(), empty_cache()
        for index in range(len(past) // 4):
            for which, part_of in ((_SELF, grows), (_CROSS, stays)):
                keys, values = (past[f"past_{which}_{part}_{index}"] for part in PARTS)
                part_of.update(keys, values, index)
        cache = EncoderDecoderCache(grows, stays)
        cache.is_updated = dict.fromkeys(range(len(past) // 4), True)
        # Only the shape of the encoder's states is read: their keys and values are in the cache.
        states = past[f"past_{_CROSS}_key_0"][:, 0, :, :1]
        result = self.decode(input_ids, encoder_attention_mask, states, cache)
        return {"logits": result.logits} | _named(_SELF, grows)


def _named(which: str, cache: Any) -> dict[str, Tensor]:
    return {
        f"present_{which}_{part}_{index}": tensor
        for index, pair in enumerate(keys_and_values(cache))
        for part, tensor in zip(PARTS, pair, strict=True)
    }


def _sample(model: PreTrainedModel) -> dict[str, Tensor]:
    return sample_inputs(model, _READ, SAMPLE_BATCH, SAMPLE_LENGTH)


@torch.no_grad()
def _first_inputs(model: PreTrainedModel, read: Mapping[str, Tensor], written: int = _WRITTEN) -> dict[str, Tensor]:
    """Inputs of the first pass after ``read``: the token that starts, and the first ones read again."""
    start = torch.full_like(read["input_ids"][:, :1], start_token(model))
    return {
        "encoder_attention_mask": read["attention_mask"],
        "input_ids": torch.cat([start, read["input_ids"][:, : written - 1]], dim=1),
        "encoder_hidden_states": _Encoder(model)(**read)["last_hidden_state"],
    }


@torch.no_grad()
def _step_inputs(model: PreTrainedModel, read: Mapping[str, Tensor], written: int = _WRITTEN) -> dict[str, Tensor]:
    """Inputs of the step after that first pass; the token is the last one read."""
    first = _first_inputs(model, read, written)
    found = {"encoder_attention_mask": read["attention_mask"], "input_ids": read["input_ids"][:, -1:]}
    present = _First(model)(**first)
    return found | {name.replace("present", "past"): tensor for name, tensor in present.items() if name != "logits"}


def start_token(model: PreTrainedModel) -> int:
    """The token that writing begins with."""
    settings = model.generation_config
    for source in (settings, model.config):
        for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
            value = getattr(source, name, None)
            if value is not None:
                return int(value)
    return 0


@torch.no_grad()
def _layers_of(module: _First, sample: Mapping[str, Tensor]) -> int:
    return (len(module(**sample)) - 1) // 4


def _cache_names(prefix: str, layers: int, lengths: Mapping[str, str]) -> dict[str, Dimensions]:
    return {
        f"{prefix}.{index}.{which}.{part}": (BATCH, None, length, None)
        for which, length in lengths.items()
        for index in range(layers)
        for part in PARTS
    }


def _renamed(layers: int) -> dict[str, str]:
    """Traced name -> name in the file, of caches in and out."""
    return {
        f"{traced}_{which}_{part}_{index}": f"{name}.{index}.{which}.{part}"
        for traced, name in (("past", "past_key_values"), ("present", "present"))
        for index in range(layers)
        for which in (_SELF, _CROSS)
        for part in PARTS
    }
