"""Distillation of attention maps: each head of a layer follows the same head of a layer of the teacher.

For BERT and its likes and GPT-2, with equal numbers of heads. Not where positions enter between projection and score
(T5, rotary models), nor after heads were removed: see ``distillation.minilm``. Paper: Jiao et al. 2020, "TinyBERT",
arXiv 1909.10351.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, final

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.methods.distillation._inner import Inner, no_plain_scores, refused
from compresskit.methods.distillation._shared import distil
from compresskit.registry import register
from compresskit.train.inner import InnerObjective


@register
@final
class AttentionMaps(Inner):
    """Train the model to attend as its teacher does. Values, and what follows them in the last layer, are not trained.

    ```yaml
    - distillation.attention: {layers: skip, on: scores, steps: 200}
    ```
    """

    name: ClassVar[str] = "attention"
    paper: ClassVar[str] = "Jiao et al. 2020, arXiv 1909.10351"

    on: Literal["scores", "probabilities"] = Field(
        "scores", description="mean square before the softmax (TinyBERT), or the divergence of the rows after it"
    )

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return refused(model) or no_plain_scores(model)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        scores = float(self.on == "scores")
        distil(self, model, sites, context, InnerObjective(layers=self.layers, scores=scores, maps=1.0 - scores))
