"""The texts of one run: for calibration, for recovery, and held out for fidelity, never the same twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.batches import random_batches, tokenize
from compresskit.calibrate.sources import BUILTIN, load_texts
from compresskit.calibrate.text import builtin_texts, vocabulary_words
from compresskit.core.context import Batch
from compresskit.recipe import Recipe

HELD_OUT = 128
RECOVERY_TEXTS = 200_000
DOMAINS = ("documentation", "everyday")


@dataclass(frozen=True)
class RunData:
    """Tokenised data of a run. ``held_out`` maps a kind of text to its batches; ``texts`` are the
    user's own for recovery training, none where the built-in ones serve."""

    calibration: Sequence[Batch]
    texts: Sequence[str]
    held_out: Mapping[str, Sequence[Batch]]
    probe: Batch
    synthetic: bool = False


def calibration(
    model: PreTrainedModel, tokenizer: Any, recipe: Recipe, seed: int, warn: Callable[[str], None]
) -> list[dict[str, Tensor]]:
    """Batches of the texts that the recipe asks to calibrate on; of random tokens for a model without a tokenizer."""
    settings = recipe.calibration
    length = settings.max_length
    if tokenizer is None:
        return random_batches(model, samples=min(settings.samples, 64), max_length=min(length, 32), seed=seed)
    words = vocabulary_words(tokenizer)
    texts = load_texts(settings.data, settings.samples, seed=seed, vocabulary=words, warn=warn)
    return tokenize(texts, tokenizer, model, length)


def prepare(model: PreTrainedModel, tokenizer: Any, recipe: Recipe, seed: int, warn: Callable[[str], None]) -> RunData:
    """Texts as the recipe asks; random tokens, marked ``synthetic``, for a model without a tokenizer."""
    settings = recipe.calibration
    length = settings.max_length
    batches = calibration(model, tokenizer, recipe, seed, warn)
    if tokenizer is None:
        held = random_batches(model, samples=32, max_length=min(length, 32), seed=seed + 1)
        return RunData(batches, [], {"random tokens": held}, held[0], synthetic=True)
    # Recovery trains on all the text that the user brings; of the built-in texts it takes as many as it needs itself.
    recovery = [] if settings.data == BUILTIN else load_texts(settings.data, RECOVERY_TEXTS, seed=seed)
    held_texts = {domain: builtin_texts(HELD_OUT, seed, split="heldout", kinds=(domain,)) for domain in DOMAINS}
    held_out = {domain: tokenize(found, tokenizer, model, length) for domain, found in held_texts.items()}
    probe_texts = ["A short one.", held_texts["documentation"][0], held_texts["everyday"][0]]
    probe = tokenize(probe_texts, tokenizer, model, min(length, 48), batch_size=3)[0]
    return RunData(batches, recovery, held_out, probe)
