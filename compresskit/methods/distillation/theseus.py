"""Module replacing: blocks of a shallower model stand in, more and more often, for runs of the model's own blocks.

Each block of the student takes the place of a run of the model's blocks, with a probability that grows linearly; the
rest of the model stays as it is around it. At the end all runs are replaced, and the student is trained alone. What it
is trained towards is the output of the model as it comes to this step, on text without labels; the paper trains on the
task's labels. For models of one stack; not for T5, whose blocks share a table. The result is a stock checkpoint.
Paper: Xu et al. 2020, "BERT-of-Theseus", arXiv 2002.02925.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import ClassVar, final

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core import anatomy, surgery
from compresskit.core.compressor import Gain, Need
from compresskit.core.context import Context
from compresskit.core.cutting import Choice
from compresskit.core.sites import Site
from compresskit.methods.distillation._shared import (
    Distillation,
    nothing_trainable,
    training_options,
    training_texts,
)
from compresskit.methods.distillation._students import bytes_of, gone, kept_blocks, why_not
from compresskit.registry import register
from compresskit.train.objective import towards_output
from compresskit.train.recovery import recover
from compresskit.train.replacing import ReplacingObjective


@register
@final
class Theseus(Distillation):
    """Replace runs of blocks by single ones, by chance at first, then for good; the model gets shallower.

    What lies outside of the blocks trains too, but for the embeddings; the paper freezes it while blocks are replaced,
    as ``freeze`` does.

    ```yaml
    - distillation.theseus: {layers: 3, rate: 0.3, replacing: 0.5, steps: 400, lr: 1.0e-4}
    ```
    """

    name: ClassVar[str] = "theseus"
    paper: ClassVar[str] = "Xu et al. 2020, arXiv 2002.02925"
    needs: ClassVar[frozenset[Need]] = frozenset({"training"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory", "compute", "latency"})

    layers: int | None = Field(None, ge=1, le=10_000, description="blocks of the student; default: half of the model's")
    choose: Choice = Field(
        "first",
        description="the blocks that the student begins with: first (the paper), last, ends, or spread evenly",
    )
    rate: float = Field(0.3, ge=0, le=1, description="the paper's b: probability of a replacement at the beginning")
    replacing: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the steps after which everything is replaced, and the student trains alone",
    )
    temperature: float = Field(1.0, gt=0, le=100, description="softens the distributions of models with a head")

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        name, body = type(model).__name__, anatomy.of(model)
        if not body.blocks:
            return f"{name} has no transformer blocks"
        if len(body.stacks) > 1:
            return f"{name} has more than one stack of blocks; use pruning.layers and a recovery"
        pinned = next((block for block in body.blocks if block.pinned), None)
        if pinned is not None:
            return f"block {pinned.index} of {name} can't be replaced: {pinned.pinned}"
        if not gone(model, self.layers, self.choose):
            return f"{name} has {len(body.blocks)} blocks, and the student would have as many"
        return why_not(model, self.layers, self.choose) or nothing_trainable(model)

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Bytes of the blocks that go, if all blocks are of one size."""
        return bytes_of(model, gone(model, self.layers, self.choose))

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        predecessor = copy.deepcopy(model).eval()
        stack = anatomy.of(model).stacks[0]
        total = len(stack.blocks)
        kept = kept_blocks(self.layers, self.choose, total)
        surgery.keep_blocks(model, stack, kept)
        objective = ReplacingObjective(towards_output(model, self.temperature), predecessor, self.rate, self.replacing)
        texts, options = training_texts(self, context), training_options(self)
        outcome = recover(model, context, objective, texts, options, teacher=predecessor)
        context.details.update({sites[0].path or "model": {"begun_with": kept, "of": total, **asdict(outcome)}})
