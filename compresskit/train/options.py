"""The options of training, as every method that trains has them in a recipe."""

from __future__ import annotations

from typing import Protocol, Self

from pydantic import Field, model_validator

from compresskit.calibrate.text import builtin_texts, vocabulary_words
from compresskit.core.compressor import Compressor
from compresskit.core.context import Context
from compresskit.train.loop import RecoveryOptions

DEFAULT_STEPS = 150


class Training(Compressor):
    """Options of a method that trains on texts.

    Without ``steps`` and ``epochs``, 150 steps are taken.
    """

    steps: int | None = Field(None, ge=1, le=10_000_000, description="optimizer steps; wins over epochs")
    epochs: float | None = Field(None, gt=0, le=1000, description="passes over the texts")
    lr: float = Field(1e-4, gt=0, le=1, description="peak learning rate of AdamW")
    batch: int = Field(32, ge=1, le=65_536, description="texts that a process takes at once")
    accumulation: int = Field(1, ge=1, le=65_536, description="batches whose gradients are added up for a step")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps in which the learning rate rises")
    max_length: int = Field(64, ge=2, le=131_072, description="tokens a text is cut to")
    texts: int = Field(4096, ge=1, le=100_000, description="built-in texts, where the run has no texts of its own")
    freeze_embeddings: bool = Field(True, description="leave the embedding tables as they are")
    freeze: tuple[str, ...] = Field((), description="globs of modules to leave as they are")
    save_every: int = Field(250, ge=1, le=10_000_000, description="steps between savings, from which --resume goes on")
    dev: float = Field(
        0, ge=0, lt=1, description="share of the texts held out: the weights that are best on it are kept"
    )
    patience: int | None = Field(
        None, ge=1, le=1000, description="looks at the held-out texts without a smaller loss after which training stops"
    )
    evaluate_every: int = Field(50, ge=1, le=10_000_000, description="steps between looks at the held-out texts")
    bf16: bool = Field(
        False, description="compute products in bfloat16, faster where the processor has it; weights stay float32"
    )

    @model_validator(mode="after")
    def _patience_needs_texts(self) -> Self:
        if self.patience is not None and not self.dev:
            raise ValueError("patience goes by texts that are held out: set `dev` to a share of them, such as 0.05")
        return self


def training_options(method: Training) -> RecoveryOptions:
    """The options of ``method`` as training takes them."""
    steps = method.steps
    if steps is None and method.epochs is None:
        steps = DEFAULT_STEPS
    return RecoveryOptions(
        steps=steps,
        epochs=method.epochs or 1.0,
        lr=method.lr,
        batch=method.batch,
        accumulation=method.accumulation,
        max_length=method.max_length,
        warmup=method.warmup,
        freeze_embeddings=method.freeze_embeddings,
        freeze=method.freeze,
        save_every=method.save_every,
        bf16=method.bf16,
        dev=method.dev,
        patience=method.patience,
        evaluate_every=method.evaluate_every,
    )


class ReadsTexts(Protocol):
    """A method that says how many built-in texts it takes."""

    @property
    def texts(self) -> int:
        """Of the option."""
        ...


def training_texts(method: ReadsTexts, context: Context) -> list[str]:
    """The run's texts, or built-in ones."""
    words = vocabulary_words(context.tokenizer)
    return list(context.texts) or builtin_texts(method.texts, context.seed, vocabulary=words)
