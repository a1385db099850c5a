"""What is traced: a model wrapped so that it takes and gives named tensors only, with sample inputs and dimensions.

Shapes: B batch, T tokens, P tokens in the cache, H key-value heads, D head dimension.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compresskit.calibrate.outputs import pool

BATCH, SEQUENCE, PAST, TOTAL = "batch", "sequence", "past_sequence", "total_sequence"
ENCODER, DECODER = "encoder_sequence", "decoder_sequence"
SAMPLE_BATCH, SAMPLE_LENGTH = 2, 9

ENTITIES = ("head", "tail")
"""Inputs of models for relation extraction: first token of each entity and the one after its last, (B, 2)."""

Dimensions = tuple[str | None, ...]
"""Names of the axes that vary; None where the size is fixed."""


@dataclass(frozen=True)
class Task:
    """One graph to export.

    Args:
        name: of the graph, and of its file without suffix unless it is the main one.
        module: called with the tensors of ``sample`` by name, gives a dict of tensors.
        sample: inputs to trace with.
        inputs, outputs: names in the file with their dimensions, in order.
        renamed: traced name -> name in the file, where a Python identifier can't be the name.
        step: it decodes one more token from a cache.
    """

    name: str
    module: nn.Module
    sample: dict[str, Tensor]
    inputs: dict[str, Dimensions]
    outputs: dict[str, Dimensions]
    renamed: dict[str, str] = field(default_factory=dict)
    step: bool = False

    def feed(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``batch`` by the names of the file."""
        return {self.renamed.get(name, name): tensor for name, tensor in batch.items()}

    def mask_of(self, output: str, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The attention mask over the varying tokens of ``output``, bool; None if ``batch`` has none."""
        for name, dimensions in self.inputs.items():
            if name.endswith("attention_mask") and dimensions[1] and dimensions[1] in self.outputs[output]:
                return batch[name].bool()
        return None

    @torch.no_grad()
    def run(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What torch gives for ``batch``, by the names of the file."""
        return self.feed(self.module(**batch))


def accepts(model: PreTrainedModel, name: str) -> bool:
    """Whether the model's forward has a parameter ``name``."""
    return name in inspect.signature(type(model).forward).parameters


def is_generative(model: PreTrainedModel) -> bool:
    """Whether the model is a decoder that writes text token by token, with a cache and no encoder."""
    return model.can_generate() and not model.config.is_encoder_decoder


def is_seq2seq(model: PreTrainedModel) -> bool:
    """Whether the model reads with an encoder and writes text token by token with a decoder."""
    return model.can_generate() and bool(model.config.is_encoder_decoder)


def input_names(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """The inputs of the file, as the tokenizer names its own, as far as the model takes them."""
    wanted = ["input_ids", "attention_mask"]
    if tokenizer is not None and "token_type_ids" in tokenizer.model_input_names:
        wanted.append("token_type_ids")
    if model.config.is_encoder_decoder and accepts(model, "decoder_input_ids") and _takes_decoder_ids(model):
        wanted.append("decoder_input_ids")
    if all(accepts(model, name) for name in ENTITIES):
        wanted += ENTITIES
    return [name for name in wanted if accepts(model, name)]


def _takes_decoder_ids(model: PreTrainedModel) -> bool:
    return "Classification" not in type(model).__name__ and "QuestionAnswering" not in type(model).__name__


def forward_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    pooling: bool = False,
    sentence_transformer: Any = None,
) -> Task:
    """The model as a function of token ids, without a cache.

    Args:
        pooling: also give ``sentence_embedding`` (B, D), pooled and normalized as ``sentence_transformer`` says; by
            default the mean over attended tokens, not normalized.
    """
    names = input_names(model, tokenizer)
    module = _Forward(model, sentence_transformer, pooling=pooling).eval()
    sample = sample_inputs(model, names, SAMPLE_BATCH, SAMPLE_LENGTH)
    with torch.no_grad():
        found = module(**sample)
    length = DECODER if "decoder_input_ids" in names else SEQUENCE
    outputs: dict[str, Dimensions] = {
        name: (BATCH, length if tensor.dim() == 3 else None, None)[: tensor.dim()] for name, tensor in found.items()
    }
    return Task("model", module, sample, {name: _dimensions(name) for name in names}, outputs)


def _dimensions(name: str) -> Dimensions:
    if name in ENTITIES:
        return (BATCH, None)
    return (BATCH, DECODER if name.startswith("decoder") else SEQUENCE)


class _Forward(nn.Module):
    """Ids in; ``logits``, or ``last_hidden_state`` and perhaps ``sentence_embedding``, out."""

    def __init__(self, model: PreTrainedModel, sentence_transformer: Any, *, pooling: bool) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.sentence_transformer, self.pooling = sentence_transformer, pooling
        self.settings = {"use_cache": False} if accepts(model, "use_cache") else {}

    def forward(self, **tensors: Tensor) -> dict[str, Tensor]:
        more = self.settings | positions(self.model, tensors["attention_mask"])
        result = self.model(**tensors, **more, return_dict=True)
        if getattr(result, "logits", None) is not None:
            return {"logits": result.logits}
        hidden = result.last_hidden_state
        if not self.pooling:
            return {"last_hidden_state": hidden}
        vector = pool(hidden, tensors["attention_mask"], self.sentence_transformer)
        if getattr(self.sentence_transformer, "normalize", False):
            vector = F.normalize(vector, dim=-1)
        return {"last_hidden_state": hidden, "sentence_embedding": vector}


def positions(model: PreTrainedModel, mask: Tensor, queries: int | None = None) -> dict[str, Tensor]:
    """Positions of decoders counted from the first attended token, as ``generate`` does; nothing for other models."""
    if not (is_generative(model) and accepts(model, "position_ids")):
        return {}
    counted = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"position_ids": counted if queries is None else counted[:, -queries:]}


def sample_inputs(
    model: PreTrainedModel, names: list[str], batch: int, length: int, *, padded: bool = False, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs of ``names``, (B, T) int64; with ``padded``, every row but the first is cut short on the right."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size
    mask = torch.ones(batch, length, dtype=torch.long)
    if padded:
        for row in range(1, batch):
            mask[row, max(1, length - 1 - 3 * row) :] = 0
    found: dict[str, Tensor] = {}
    for name in names:
        if name == "attention_mask":
            found[name] = mask
        elif name == "token_type_ids":
            found[name] = torch.zeros_like(mask)
        elif name in ENTITIES:
            found[name] = entity_spans(mask, generator)
        else:
            columns = length if name == "input_ids" else max(1, length // 2)
            found[name] = torch.randint(1, vocabulary, (batch, columns), generator=generator)
    return found


def entity_spans(mask: Tensor, generator: torch.Generator) -> Tensor:
    """A random attended token of each row as an entity, (B, 2)."""
    first = (torch.rand(len(mask), generator=generator) * mask.sum(1)).long()
    return torch.stack([first, first + 1], 1)
