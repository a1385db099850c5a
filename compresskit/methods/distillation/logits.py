"""Distillation of responses: the student's softened output distribution follows the teacher's.

For language models (at every attended position) and for classifiers, on text without labels. Not for base encoders,
which give no distribution: see ``distillation.embeddings``. Paper: Hinton, Vinyals and Dean 2015, arXiv 1503.02531.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, final

from pydantic import Field, model_validator
from transformers import PreTrainedModel

from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.methods.distillation._language import no_logits
from compresskit.methods.distillation._shared import Distillation, distil
from compresskit.registry import register
from compresskit.tasks.fidelity import is_binary
from compresskit.train.objective import ResponseObjective
from compresskit.train.policies import POLICIES


@register
@final
class Logits(Distillation):
    """Train the model to give the teacher's logits; repairs what earlier steps damaged, changes no size.

    ```yaml
    - distillation.logits: {steps: 200, lr: 1.0e-4, batch: 16, temperature: 2.0}
    ```
    """

    name: ClassVar[str] = "logits"
    paper: ClassVar[str] = "Hinton et al. 2015, arXiv 1503.02531"

    temperature: float = Field(
        2.0, gt=0, le=100, description="softens both distributions; the loss is scaled by its square"
    )

    policy: Literal["fixed", "exp", "range", "standardized", "dtkd", "annealed", "curriculum"] = Field(
        "fixed", description="temperature: one for all, a rule for each row, or for the time (see distillation.midtd)"
    )

    top_k: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="language models: words kept of each distribution, the rest as one; null: all",
    )

    @model_validator(mode="after")
    def _whole_distributions_for_a_rule(self) -> Logits:
        if self.top_k is not None and self.policy != "fixed":
            raise ValueError("a rule of temperatures goes by whole distributions: leave out top_k, or the policy")
        return self

    @model_validator(mode="after")
    def _one_measure_for_held_out_texts(self) -> Logits:
        if self.dev and self.policy == "curriculum":
            raise ValueError("a learned temperature changes what losses mean: leave out dev, or take another policy")
        return self

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        if self.policy != "fixed" and is_binary(model):
            return "each class is a decision of its own, and a rule goes by a distribution over classes"
        return no_logits(model, self.top_k)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        policy = None if self.policy == "fixed" else POLICIES[self.policy]()
        distil(
            self, model, sites, context, ResponseObjective(self.temperature, is_binary(model), policy, top_k=self.top_k)
        )
