"""Distillation of relations: how queries, keys and values of a layer relate to each other, whatever their widths.

For encoders and decoders with one stack; teacher and student may differ in depth, width and heads. Queries and keys are
taken before rotary positions. What follows the values in the student's last layer is not trained by this: let
``distillation.embeddings`` or ``distillation.logits`` follow. Papers: Wang et al. 2020, "MiniLM", arXiv 2002.10957;
Wang et al. 2021, "MiniLMv2", arXiv 2012.15828.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, final

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.methods.distillation._inner import refused
from compresskit.methods.distillation._shared import Distillation, distil
from compresskit.registry import register
from compresskit.train.inner import InnerObjective, Role

RELATIONS: dict[str, tuple[tuple[Role, Role], ...]] = {
    "v1": (("query", "key"), ("value", "value")),
    "v2": (("query", "query"), ("key", "key"), ("value", "value")),
}


@register
@final
class MiniLM(Distillation):
    """Train the model's last layer to relate tokens as a layer of the teacher does; changes no size.

    ```yaml
    - distillation.minilm: {version: v2, teacher_layer: -1, relation_heads: 12, steps: 400, lr: 3.0e-4}
    ```
    """

    name: ClassVar[str] = "minilm"
    paper: ClassVar[str] = "Wang et al. 2020, arXiv 2002.10957; Wang et al. 2021, arXiv 2012.15828"

    version: Literal["v1", "v2"] = Field("v2", description="relations: Q·K and V·V (v1), or Q·Q, K·K and V·V (v2)")
    teacher_layer: int = Field(-1, ge=-1000, le=999, description="the teacher's layer, from 0, or from its end")
    relation_heads: int | None = Field(
        None, ge=1, le=4096, description="pieces that vectors are cut into; default: the most up to 12 that fit"
    )

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return refused(model)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        objective = InnerObjective(
            relations=RELATIONS[self.version], heads=self.relation_heads, last_only=self.teacher_layer
        )
        distil(self, model, sites, context, objective)
