"""What a model gives: an embedding of the text, a distribution over the vocabulary, or over classes.

Shapes: B texts, T tokens (of the decoder, where there is one), D hidden size, C classes, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.forward import accepted, attention_mask, on_device, run
from compresskit.core.context import Batch
from compresskit.errors import ModelError

OutputKind = Literal["embedding", "language", "classification"]


@dataclass(frozen=True)
class Pooling:
    """How tokens become a sentence vector: ``mean``, ``cls``, ``max`` or ``lasttoken``."""

    pooling: str = "mean"


def output_kind(model: PreTrainedModel) -> OutputKind:
    """``language`` for a head over the vocabulary, ``classification`` for any other, ``embedding`` for none."""
    if model.get_output_embeddings() is not None:
        return "language"
    if type(model).__name__.endswith(("Model", "Encoder")):
        return "embedding"
    return "classification"


def result_of(output: Any, where: str = "") -> Tensor:
    """Logits, or the last hidden state of a model without a head, from what ``forward`` returned."""
    for name in ("logits", "prediction_logits", "last_hidden_state"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    raise ModelError(
        "CK-M043",
        "the model gives neither logits nor a last hidden state",
        where=where,
        fix="load it in its base class, or in one with a language or classification head",
    )


def outputs_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Logits (B, T, V), (B, T, C) or (B, C), or hidden states (B, T, D), as the model stands, without gradients."""
    with torch.no_grad():
        return result_of(run(model, batch), type(model).__name__)


def forward(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Like ``outputs_of``, with gradients."""
    extra = {"use_cache": False} if "use_cache" in accepted(model) else {}
    return result_of(model(**on_device(batch, model.device), **extra), type(model).__name__)


def result_mask(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Which tokens the rows of the result belong to that are attended, (B, T) bool, on the model's device."""
    double = bool(getattr(model.config, "is_encoder_decoder", False)) and "decoder_input_ids" in batch
    return attention_mask(batch, decoder=double).to(model.device)


def pool(hidden: Tensor, mask: Tensor, sentence_transformer: Any = None) -> Tensor:
    """One vector a text, (B, D), from hidden states (B, T, D) and the mask (B, T).

    The mean over attended tokens, unless ``sentence_transformer`` (files of a sentence-transformers model, with
    ``pooling`` mean, cls, max or lasttoken) says otherwise. Pooled in float32, or in float64 if ``hidden`` is.
    """
    mode = getattr(sentence_transformer, "pooling", None) or "mean"
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    weights = mask.to(hidden.device).unsqueeze(-1)
    if mode == "mean":
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    if mode == "cls":
        return hidden[:, 0]
    if mode == "max":
        return hidden.masked_fill(~weights.bool(), -torch.inf).amax(1)
    if mode == "lasttoken":
        last = mask.shape[1] - 1 - mask.int().flip(1).argmax(1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), last.to(hidden.device)]
    raise ModelError(
        "CK-M044",
        f"sentence embeddings pooled by {mode!r} aren't known",
        where="1_Pooling/config.json",
        fix="known: mean, cls, max, lasttoken",
    )
