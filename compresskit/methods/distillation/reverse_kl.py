"""Distillation by the reverse KL: the student keeps to what the teacher finds likely, and need not cover all of it.

For language models (at every attended position) and for classifiers, on text without labels. The divergence is taken
at the given texts; with ``distillation.gkd`` (share 1, beta 1) at texts that the student writes, as in the paper, but
with the exact gradient of each position and none through the writing. Not for base encoders, which give no
distribution. Paper: Gu et al. 2024, "MiniLLM", arXiv 2306.08543.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.methods.distillation._language import no_logits
from compresskit.methods.distillation._shared import Distillation, distil
from compresskit.numerics.divergences import kl
from compresskit.registry import register
from compresskit.tasks.fidelity import is_binary
from compresskit.train.objective import ResponseObjective


def _reverse(log_p: Tensor, log_q: Tensor) -> Tensor:
    return kl(log_q, log_p)


@register
@final
class ReverseKL(Distillation):
    """Train the model to say only what its teacher may say (KL of the student from the teacher); changes no size.

    ```yaml
    - distillation.reverse_kl: {steps: 200, lr: 1.0e-4, batch: 16}
    ```
    """

    name: ClassVar[str] = "reverse_kl"
    paper: ClassVar[str] = "Gu et al. 2024, arXiv 2306.08543"

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
        objective = ResponseObjective(self.temperature, is_binary(model), divergence=_reverse, top_k=self.top_k)
        distil(self, model, sites, context, objective)
