"""What the methods on output distributions have in common: which models have one, and which can write."""

from __future__ import annotations

from transformers import PreTrainedModel

from compresskit.calibrate.outputs import output_kind
from compresskit.core import anatomy
from compresskit.methods.distillation._shared import nothing_trainable


def no_logits(model: PreTrainedModel, top_k: int | None = None) -> str | None:
    """Why the model's distribution (or its ``top_k`` largest parts) can't be compared, or None."""
    if top_k is not None and output_kind(model) != "language":
        return f"{type(model).__name__} has no words of which top_k could be kept; leave it out"
    if output_kind(model) == "embedding":
        return f"{type(model).__name__} gives no logits; use distillation.embeddings, or a class with a head"
    return nothing_trainable(model)


def no_writer(model: PreTrainedModel) -> str | None:
    """Why the model can't go on with a text, or be trained on one, or None."""
    if output_kind(model) != "language":
        return f"{type(model).__name__} has no language head and writes no text; use distillation.logits or embeddings"
    body = anatomy.of(model)
    if not (body.causal or body.encoder_decoder):
        return f"{type(model).__name__} fills gaps and can't go on with a text; use distillation.logits or reverse_kl"
    return nothing_trainable(model)
