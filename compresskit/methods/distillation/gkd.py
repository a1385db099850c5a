"""Generalised distillation: the divergence is taken, for a share of the batches, at texts that the student writes.

So the student learns what to say after its own mistakes. For decoders and encoder-decoders with a language head; not
for encoders, which write nothing: see ``distillation.logits``. The teacher stays in memory unless ``share`` is 0.
Paper: Agarwal et al. 2024, "On-Policy Distillation of Language Models", arXiv 2306.13649.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, final

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.methods.distillation._language import no_writer
from compresskit.methods.distillation._shared import Distillation, distil
from compresskit.numerics.divergences import generalized_jsd
from compresskit.registry import register
from compresskit.train.generation import Decoding
from compresskit.train.written import OnPolicyObjective


@register
@final
class GKD(Distillation):
    """Train a language model towards its teacher on texts of which it writes a share itself; changes no size.

    ```yaml
    - distillation.gkd: {share: 0.5, beta: 0.5, prompt: 8, new_tokens: 32, steps: 200, lr: 1.0e-4}
    ```
    """

    name: ClassVar[str] = "gkd"
    paper: ClassVar[str] = "Agarwal et al. 2024, arXiv 2306.13649"

    share: float = Field(
        0.5, ge=0, le=1, description="the paper's λ: share of the batches that the student writes; 0: none"
    )
    beta: float = Field(
        0.5,
        ge=0,
        le=1,
        description="the paper's β: JSD_β / (β(1-β)), whose limits are the forward KL at 0 and the reverse KL at 1",
    )
    temperature: float = Field(
        1.0, gt=0, le=100, description="softens both distributions; the loss is scaled by its square"
    )
    prompt: int = Field(8, ge=1, le=131_072, description="tokens of a text that the student goes on from")
    new_tokens: int = Field(32, ge=1, le=131_072, description="tokens that it writes at most")
    sampling_temperature: float = Field(1.0, ge=0, le=100, description="of its writing; 0: the likeliest token")

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return no_writer(model)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        objective = OnPolicyObjective(
            self.temperature,
            # None is the forward KL as distillation.logits has it, bit by bit.
            divergence=None if self.beta == 0 else partial(generalized_jsd, beta=self.beta),
            share=self.share,
            decoding=Decoding(self.prompt, self.new_tokens, self.sampling_temperature),
        )
        distil(self, model, sites, context, objective)
