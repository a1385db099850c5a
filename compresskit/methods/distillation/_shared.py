"""What the distillation methods have in common: their facts, refusals, and the row of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import ClassVar

from transformers import PreTrainedModel

from compresskit.core.compressor import Gain, Need
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.train.objective import Objective
from compresskit.train.options import DEFAULT_STEPS, Training, training_options, training_texts
from compresskit.train.recovery import recover

__all__ = ["DEFAULT_STEPS", "Distillation", "distil", "nothing_trainable", "training_options", "training_texts"]


class Distillation(Training):
    """Facts that every distillation method shares."""

    family: ClassVar[str] = "distillation"
    sites: ClassVar[frozenset[str]] = frozenset({"model"})
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "training"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset()


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
