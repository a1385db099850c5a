"""Distillation of sequences: the teacher writes, and the student learns its texts as if they were data.

For decoders (which go on with the beginnings of the texts) and encoder-decoders (which answer them). Not for encoders,
which write nothing: see ``distillation.logits``. Only the teacher's tokens are needed, once; no distribution is kept.
Paper: Kim and Rush 2016, "Sequence-Level Knowledge Distillation", arXiv 1606.07947.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import ClassVar, final

from pydantic import Field, model_validator
from transformers import PreTrainedModel

from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.methods.distillation._language import no_writer
from compresskit.methods.distillation._shared import Distillation, distil
from compresskit.registry import register
from compresskit.train.generation import Decoding
from compresskit.train.written import SequenceObjective


@register
@final
class Sequence(Distillation):
    """Train a language model on what its teacher writes after the beginnings of the texts; changes no size.

    ```yaml
    - distillation.sequence: {prompt: 8, new_tokens: 64, beams: 4, steps: 200, lr: 1.0e-4}
    - distillation.sequence: {prompt: 1, temperature: 1.0, samples: 8}   # as the teacher speaks, not its likeliest text
    ```
    """

    name: ClassVar[str] = "sequence"
    paper: ClassVar[str] = "Kim and Rush 2016, arXiv 1606.07947"

    prompt: int = Field(8, ge=1, le=131_072, description="tokens of a text that the teacher goes on from")
    new_tokens: int = Field(32, ge=1, le=131_072, description="tokens that it writes at most")
    beams: int = Field(1, ge=1, le=64, description="texts that are followed at once, of which the likeliest stays")
    temperature: float = Field(0.0, ge=0, le=100, description="of sampling; 0: the likeliest token, or of the beams")
    samples: int = Field(1, ge=1, le=10_000, description="texts that are sampled after each beginning")

    @model_validator(mode="after")
    def _one_way_to_write(self) -> Sequence:
        if self.temperature > 0 and self.beams > 1:
            raise ValueError("beams look for the likeliest text: give them, or a temperature to sample at")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError("all texts after one beginning are the same without sampling: give a temperature")
        return self

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return no_writer(model)

    def apply(self, model: PreTrainedModel, sites: Several[Site], context: Context) -> None:
        decoding = Decoding(self.prompt, self.new_tokens, self.temperature, self.beams)
        distil(self, model, sites, context, SequenceObjective(decoding, context.seed), copies=self.samples)
