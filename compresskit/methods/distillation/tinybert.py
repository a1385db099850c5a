"""Distillation in two stages: embeddings, hidden states and attention scores first, then the prediction.

For BERT and its likes, without a head or with one. Not for decoders, nor after heads were removed. Paper: Jiao et al.
2020, "TinyBERT", arXiv 1909.10351.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, final

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core import anatomy
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.methods.distillation._inner import Inner, no_plain_scores, refused
from compresskit.methods.distillation._shared import training_options, training_texts
from compresskit.registry import register
from compresskit.train.inner import InnerObjective
from compresskit.train.objective import Objective, towards_output
from compresskit.train.recovery import recover


@register
@final
class TinyBert(Inner):
    """Train the model's layers towards the teacher's, then its output; changes no size.

    ```yaml
    - distillation.tinybert: {layers: skip, intermediate: 0.5, steps: 400, lr: 1.0e-4}
    ```
    """

    name: ClassVar[str] = "tinybert"
    paper: ClassVar[str] = "Jiao et al. 2020, arXiv 1909.10351"

    freeze_embeddings: bool = Field(False, description="leave the embedding tables as they are")
    intermediate: float = Field(
        0.5, ge=0, le=1, description="share of the steps for the first stage; 0 or 1: one stage"
    )
    embedding: float = Field(1.0, ge=0, le=1000, description="weight of what enters the first block")
    hidden: float = Field(1.0, ge=0, le=1000, description="weight of the blocks' outputs")
    attention: float = Field(1.0, ge=0, le=1000, description="weight of the attention scores")
    temperature: float = Field(1.0, gt=0, le=100, description="softens the logits of the second stage")

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        reason = refused(model)
        if reason is None and anatomy.of(model).causal:
            return f"{type(model).__name__} is a decoder; use distillation.hints and distillation.logits"
        return reason or no_plain_scores(model)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        texts, options = training_texts(self, context), training_options(self)
        notes: dict[str, Any] = {}
        begun = 0.0
        first = None if options.steps is None else round(options.steps * self.intermediate)
        for stage, share in (("intermediate", self.intermediate), ("prediction", 1.0 - self.intermediate)):
            steps = None
            if options.steps is not None and first is not None:
                steps = first if stage == "intermediate" else options.steps - first
            if share == 0 or steps == 0:
                continue
            part = replace(options, steps=steps, epochs=options.epochs * share)
            voice = replace(context, progress=_part(context.progress, begun, share))
            notes[stage] = asdict(recover(model, voice, self._objective(stage, model, context), texts, part))
            begun += share
        context.details.update({sites[0].path or "model": notes})

    def _objective(self, stage: str, model: PreTrainedModel, context: Context) -> Objective:
        if stage == "intermediate":
            return InnerObjective(
                layers=self.layers,
                hidden=self.hidden,
                embedding=self.embedding,
                scores=self.attention,
                seed=context.seed,
            )
        return towards_output(model, self.temperature)


def _part(progress: Callable[[float, str], None], start: float, width: float) -> Callable[[float, str], None]:
    """Progress of a stage, as progress of the whole."""
    return lambda share, what: progress(start + width * share, what)
