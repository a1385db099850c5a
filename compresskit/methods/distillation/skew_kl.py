"""Distillation by a skewed KL: each distribution is compared with a mixture of both, so that no ratio is unbounded.

For language models (at every attended position) and for classifiers, on text without labels. Not for base encoders,
which give no distribution. Paper: Ko et al. 2024, "DistiLLM", arXiv 2402.03898.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal, final

from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.methods.distillation._language import no_logits
from compresskit.methods.distillation._shared import Distillation, distil
from compresskit.numerics.divergences import skew_kl
from compresskit.registry import register
from compresskit.tasks.fidelity import is_binary
from compresskit.train.objective import ResponseObjective


def _skewed(log_p: Tensor, log_q: Tensor, alpha: float, reverse: bool) -> Tensor:
    return skew_kl(log_q, log_p, alpha) if reverse else skew_kl(log_p, log_q, alpha)


@register
@final
class SkewKL(Distillation):
    """Train the model towards its teacher by a skewed KL, forward or reverse; repairs damage, changes no size.

    ```yaml
    - distillation.skew_kl: {direction: reverse, alpha: 0.1, steps: 200, lr: 1.0e-4}
    ```
    """

    name: ClassVar[str] = "skew_kl"
    paper: ClassVar[str] = "Ko et al. 2024, arXiv 2402.03898"

    direction: Literal["forward", "reverse"] = Field(
        "forward", description="KL(p ‖ αp + (1-α)q) of the teacher p, or KL(q ‖ αq + (1-α)p) of the student q"
    )
    alpha: float = Field(0.1, ge=0, lt=1, description="the paper's α: share of the first in the mixture; 0: plain KL")
    temperature: float = Field(
        1.0, gt=0, le=100, description="softens both distributions; the loss is scaled by its square"
    )
    top_k: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="language models: words kept of each distribution, the rest as one; null: all",
    )

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return no_logits(model, self.top_k)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        divergence = partial(_skewed, alpha=self.alpha, reverse=self.direction == "reverse")
        objective = ResponseObjective(self.temperature, is_binary(model), divergence=divergence, top_k=self.top_k)
        distil(self, model, sites, context, objective)
