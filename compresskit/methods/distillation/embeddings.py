"""Distillation of embeddings: an encoder's sentence vectors, and its last hidden states, follow the teacher's.

For base encoders and for the encoder of T5, on text without labels. Not for models with a head: see
``distillation.logits``. Papers: Reimers and Gurevych 2020, arXiv 2004.09813 (vectors); Jiao et al. 2020,
arXiv 1909.10351 (hidden states); Tung and Mori 2019, arXiv 1907.09682 (similarities within a batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, final

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.calibrate.outputs import Pooling, output_kind
from compresskit.core import anatomy
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.methods.distillation._shared import Distillation, distil, nothing_trainable
from compresskit.registry import register
from compresskit.train.objective import EmbeddingObjective


@register
@final
class Embeddings(Distillation):
    """Train the encoder to give the teacher's vectors; repairs what earlier steps damaged, changes no size.

    ```yaml
    - distillation.embeddings: {steps: 200, lr: 1.0e-4, batch: 32}
    ```
    """

    name: ClassVar[str] = "embeddings"
    paper: ClassVar[str] = "Reimers and Gurevych 2020, arXiv 2004.09813"

    hidden: float = Field(1.0, ge=0, le=1000, description="weight of the last hidden states' relative error; 0: off")
    similarity: float = Field(0.0, ge=0, le=1000, description="weight of the squared error of cosines between texts")
    pooling: Literal["mean", "cls", "max", "lasttoken"] = Field("mean", description="tokens to sentence vector")

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        if output_kind(model) != "embedding":
            return f"{type(model).__name__} has a head, which the embeddings would leave alone; use distillation.logits"
        if anatomy.of(model).causal or getattr(model.config, "is_encoder_decoder", False):
            return f"{type(model).__name__} is a decoder; load it with its language head and use distillation.logits"
        return nothing_trainable(model)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        objective = EmbeddingObjective(self.hidden, Pooling(self.pooling), self.similarity)
        distil(self, model, sites, context, objective)
