"""Distillation across tokenizers: the student's sorted probabilities follow the teacher's, whatever words they are of.

For decoders with a language head; the teacher (``teacher:`` of the recipe) has its own tokenizer, in its folder. Sorted
probabilities say how sure the teacher is, and not of what: that is learned from the text. Not for encoders and
encoder-decoders. With equal tokenizers ``distillation.logits`` tells the student more. Paper: Boizard et al. 2024,
"Towards Cross-Tokenizer Distillation", arXiv 2402.12030.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core import anatomy
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.methods.distillation._language import no_writer
from compresskit.methods.distillation._shared import Distillation, distil, training_texts
from compresskit.registry import register
from compresskit.train.cross_tokenizer import CrossTokenizerObjective


@register
@final
class ULD(Distillation):
    """Train a language model on text and on sorted probabilities of a teacher with any tokenizer; changes no size.

    ```yaml
    teacher: runs/another-family
    steps:
      - distillation.uld: {weight: 1.5, steps: 200, lr: 1.0e-4}
    ```
    """

    name: ClassVar[str] = "uld"
    paper: ClassVar[str] = "Boizard et al. 2024, arXiv 2402.12030"

    weight: float = Field(
        1.5, gt=0, le=1000, description="the paper's λ: weight of the distance of sorted probabilities"
    )
    hard: float = Field(1.0, ge=0, le=1000, description="weight of the cross-entropy of the text's own tokens")
    temperature: float = Field(1.0, gt=0, le=100, description="softens both distributions")

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        reason = no_writer(model)
        if reason is None and anatomy.of(model).encoder_decoder:
            return f"{type(model).__name__} reads a text in two halves, which two tokenizers cut at different places"
        return reason

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        theirs = context.tokenizer if context.teacher_tokenizer is None else context.teacher_tokenizer()
        objective = CrossTokenizerObjective(
            self.temperature,
            texts=training_texts(self, context),
            tokenizers=(context.tokenizer, theirs),
            max_length=self.max_length,
            hard=self.hard,
            weight=self.weight,
        )
        distil(self, model, sites, context, objective)
        context.details[sites[0].path or "model"]["aligned_share"] = round(objective.share(), 4)
