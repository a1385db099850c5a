"""What the methods that look inside two models have in common: which models have an inside, and the layer map."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core import anatomy
from compresskit.methods.distillation._shared import Distillation, nothing_trainable

TURNED = ("llama", "mistral", "qwen2", "qwen3")


class Inner(Distillation):
    """Options of the methods that compare layer by layer."""

    layers: Literal["skip", "last"] | tuple[int | None, ...] = Field(
        "skip",
        description="the teacher's layers: skip (evenly, up to its last), last (its last ones), or for each layer of "
        "the student a number from 0, null for none",
    )


def refused(model: PreTrainedModel) -> str | None:
    """Why the inside of ``model`` can't be compared, or None."""
    body = anatomy.of(model)
    if not body.blocks:
        return f"{type(model).__name__} has no transformer blocks whose inside could be compared"
    if body.encoder_decoder:
        return f"{type(model).__name__} runs over two sequences; these losses compare one: use distillation.logits"
    return nothing_trainable(model)


def no_plain_scores(model: PreTrainedModel) -> str | None:
    """Why the attention scores of ``model`` aren't products of its queries and keys alone, or None."""
    kind = anatomy.of(model).model_type
    if kind == "t5":
        return "T5 adds a bias by distance to its scores; compare relations with distillation.minilm"
    if kind in TURNED:
        return f"{kind} turns queries and keys by their position; compare relations with distillation.minilm"
    return None
