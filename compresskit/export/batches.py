"""The inputs that a file is checked on: real text, random tokens, and the edges of what a graph may meet."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compresskit.calibrate.batches import longest_input
from compresskit.calibrate.text import builtin_texts
from compresskit.export.generation import decode_inputs
from compresskit.export.graph import ENTITIES, entity_spans, input_names, sample_inputs
from compresskit.export.parity import TEXT

_LONG = 192
_TEXTS, _TEXT_LENGTH = 32, 64


def forward_batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, names: list[str] | None = None
) -> dict[str, dict[str, Tensor]]:
    """Batches by name for a graph without a cache; of the inputs ``names``, by default all that the model takes."""
    names = input_names(model, tokenizer) if names is None else names
    long = min(longest_input(model, tokenizer), _LONG)
    found = {
        "one token": sample_inputs(model, names, 1, 1, seed=1),
        "random": sample_inputs(model, names, 2, min(16, long), seed=2),
        "padded": sample_inputs(model, names, 3, min(13, long), padded=True, seed=3),
        "long": sample_inputs(model, names, 1, long, seed=4),
    }
    written = [name for name in names if name not in ENTITIES]
    if tokenizer is not None and tokenizer.pad_token_id is not None and set(written) <= {*tokenizer.model_input_names}:
        texts = builtin_texts(_TEXTS, 0, split="heldout")
        encoded = tokenizer(
            texts,
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=min(long, _TEXT_LENGTH),
            return_tensors="pt",
        )
        if int(encoded["input_ids"].max()) < model.config.get_text_config().vocab_size:
            generator = torch.Generator().manual_seed(5)
            found[TEXT] = {
                name: encoded[name] if name in written else entity_spans(encoded["attention_mask"], generator)
                for name in names
            }
    return found


def decode_batches(model: PreTrainedModel) -> dict[str, dict[str, Tensor]]:
    """Batches by name for a step with a cache; the past is at least one token long."""
    long = min(longest_input(model, None) - 1, _LONG)
    return {
        "one token before": decode_inputs(model, 1, 1, seed=1),
        "random": decode_inputs(model, 2, min(16, long), seed=2),
        "padded": decode_inputs(model, 3, min(13, long), padded=True, seed=3),
        "long": decode_inputs(model, 1, long, seed=4),
    }
