"""What the distillation methods have in common: the options of training, refusals, texts, and the row of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import ClassVar

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.calibrate.text import builtin_texts, vocabulary_words
from compresskit.core.compressor import Compressor, Gain, Need
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.train.loop import RecoveryOptions
from compresskit.train.objective import Objective
from compresskit.train.recovery import recover


class Distillation(Compressor):
    """Options of training that every distillation method has.

    Without ``steps`` and ``epochs``, 150 steps are taken.
    """

    family: ClassVar[str] = "distillation"
    sites: ClassVar[frozenset[str]] = frozenset({"model"})
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "training"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset()

    steps: int | None = Field(None, ge=1, le=10_000_000, description="optimizer steps; wins over epochs")
    epochs: float | None = Field(None, gt=0, le=1000, description="passes over the texts")
    lr: float = Field(1e-4, gt=0, le=1, description="peak learning rate of AdamW")
    batch: int = Field(32, ge=1, le=65_536, description="texts a step")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps in which the learning rate rises")
    max_length: int = Field(64, ge=2, le=131_072, description="tokens a text is cut to")
    texts: int = Field(4096, ge=1, le=100_000, description="built-in texts, where the run has no texts of its own")
    freeze_embeddings: bool = Field(True, description="leave the embedding tables as they are")
    freeze: tuple[str, ...] = Field((), description="globs of modules to leave as they are")
    bf16: bool = Field(
        False, description="compute products in bfloat16, faster where the processor has it; weights stay float32"
    )


DEFAULT_STEPS = 150


def training_options(method: Distillation) -> RecoveryOptions:
    """The options of ``method`` as training takes them."""
    steps = method.steps
    if steps is None and method.epochs is None:
        steps = DEFAULT_STEPS
    return RecoveryOptions(
        steps=steps,
        epochs=method.epochs or 1.0,
        lr=method.lr,
        batch=method.batch,
        max_length=method.max_length,
        warmup=method.warmup,
        freeze_embeddings=method.freeze_embeddings,
        freeze=method.freeze,
        bf16=method.bf16,
    )


def training_texts(method: Distillation, context: Context) -> list[str]:
    """The run's texts, or built-in ones."""
    words = vocabulary_words(context.tokenizer)
    return list(context.texts) or builtin_texts(method.texts, context.seed, vocabulary=words)


def distil(
    method: Distillation,
    model: PreTrainedModel,
    sites: Sequence[Site],
    context: Context,
    objective: Objective,
    *,
    teacher: PreTrainedModel | None = None,
    copies: int = 1,
) -> None:
    """Train ``model`` towards ``teacher``, by default the run's, and note it; each text counts ``copies``."""
    texts = training_texts(method, context) * copies
    outcome = recover(model, context, objective, texts, training_options(method), teacher=teacher)
    context.details.update({sites[0].path or "model": asdict(outcome)})


def nothing_trainable(model: PreTrainedModel) -> str | None:
    """Why ``model`` can't be trained, or None."""
    if any(parameter.requires_grad and parameter.is_floating_point() for parameter in model.parameters()):
        return None
    return "all its parameters are stored as integers or frozen; train before quantizing"
