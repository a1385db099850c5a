"""Distillation of hidden states: each layer of the student follows a layer of the teacher.

For encoders and decoders with one stack; a student of another hidden size learns a projection, which is thrown away.
Not for encoder-decoder models. Papers: Romero et al. 2015, "FitNets", arXiv 1412.6550; Sun et al. 2019, "Patient
Knowledge Distillation", arXiv 1908.09355.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, final

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core import anatomy
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.methods.distillation._inner import Inner, refused
from compresskit.methods.distillation._shared import distil
from compresskit.registry import register
from compresskit.train.inner import InnerObjective


@register
@final
class Hints(Inner):
    """Train the model to have its teacher's hidden states; repairs what earlier steps damaged, changes no size.

    ```yaml
    - distillation.hints: {layers: skip, steps: 200, lr: 1.0e-4}
    - distillation.hints: {loss: unit, tokens: first}   # PKD
    ```
    """

    name: ClassVar[str] = "hints"
    paper: ClassVar[str] = "Romero et al. 2015, arXiv 1412.6550; Sun et al. 2019, arXiv 1908.09355"

    loss: Literal["mse", "unit", "relative"] = Field(
        "mse", description="mean square (FitNets), that of unit vectors (PKD), or the share of the energy missed"
    )
    tokens: Literal["all", "first"] = Field("all", description="whose states: all tokens, or the first (PKD)")

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        reason = refused(model)
        if reason is None and self.tokens == "first" and anatomy.of(model).causal:
            return f"the first token of {type(model).__name__} sees no other: its state says nothing of the text"
        return reason

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        objective = InnerObjective(
            layers=self.layers,
            hidden=1.0,
            state=self.loss,
            first_token=self.tokens == "first",
            seed=context.seed,
        )
        distil(self, model, sites, context, objective)
