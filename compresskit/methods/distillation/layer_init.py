"""A student made of its teacher: some of the blocks, with narrower feed-forward networks. It is not trained yet.

For every model with blocks; put a step of distillation behind it. The teacher is the model as it comes, and stays the
run's teacher. Papers: Sanh et al. 2019, "DistilBERT", arXiv 1910.01108 (every other block); Shleifer and Rush 2020,
"Pre-trained Summarization Distillation", arXiv 2010.13002 (evenly, with both ends).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, final

from pydantic import Field, field_validator, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.moments import input_moments
from compresskit.core import anatomy, surgery
from compresskit.core.compressor import Compressor, Gain, Need
from compresskit.core.context import Context
from compresskit.core.cutting import Choice, kept_count, neuron_bytes, refuse_unplain
from compresskit.core.sites import Site
from compresskit.core.weights import view
from compresskit.methods.distillation._students import bytes_of, gone, kept_blocks, why_not
from compresskit.numerics.importance import top_indices, wanda
from compresskit.registry import register


@register
@final
class LayerInit(Compressor):
    """Make a student of the model itself: chosen blocks, and the neurons that matter most in them.

    ```yaml
    - distillation.layer_init: {layers: 3, choose: spread, ffn: 0.5}
    - distillation.embeddings: {steps: 400}
    ```
    """

    family: ClassVar[str] = "distillation"
    name: ClassVar[str] = "layer_init"
    paper: ClassVar[str] = "Sanh et al. 2019, arXiv 1910.01108; Shleifer and Rush 2020, arXiv 2010.13002"
    sites: ClassVar[frozenset[str]] = frozenset({"model"})
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory", "compute", "latency"})

    layers: int | tuple[int, ...] | None = Field(
        None, description="blocks to keep in each stack: how many, or which, from 0; default: half of them"
    )
    choose: Choice = Field(
        "spread", description="which, where `layers` is a number: spread (evenly, with both ends), first, last, ends"
    )
    ffn: float = Field(1.0, gt=0, le=1, description="share of neurons to keep in each feed-forward network")
    criterion: Literal["wanda", "magnitude"] = Field(
        "wanda", description="which neurons matter: by activation times weight, or by weight alone"
    )
    round_to: int = Field(1, ge=1, le=65_536, description="widths become multiples of this")

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if isinstance(layers, int) and layers < 1:
            raise ValueError("keep at least one block")
        if isinstance(layers, tuple) and (not layers or min(layers) < 0 or list(layers) != sorted(set(layers))):
            raise ValueError("list each block once, from 0, ascending")
        return layers

    @model_validator(mode="after")
    def _chosen_once(self) -> LayerInit:
        if isinstance(self.layers, tuple) and self.choose != "spread":
            raise ValueError("layers lists the blocks: leave out choose")
        return self

    def requirements(self) -> frozenset[Need]:
        return self.needs if self.ffn < 1 and self.criterion == "wanda" else frozenset()

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        reason = why_not(model, self.layers, self.choose)
        if reason is not None:
            return reason
        ffns = self._kept_ffns(model)
        if not gone(model, self.layers, self.choose) and all(self._width(ffn) == ffn.width for ffn in ffns):
            return "this keeps every block and every neuron: keep fewer"
        if self.ffn == 1:
            return None
        return next(filter(None, (refuse_unplain(model, ffn.members) for ffn in ffns)), None)

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Bytes of the blocks and neurons that go."""
        saved = bytes_of(model, gone(model, self.layers, self.choose))
        for ffn in self._kept_ffns(model):
            saved += (ffn.width - self._width(ffn)) * neuron_bytes(model, ffn) if self.ffn < 1 else 0
        return saved

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        decided = self._neurons(model, context)
        for ffn, index in decided:
            context.details[ffn.path] = {"kept": len(index), "of": ffn.width}
            surgery.keep_neurons(model, ffn, index)
        for stack in anatomy.of(model).stacks:
            kept = kept_blocks(self.layers, self.choose, len(stack.blocks))
            context.details[stack.path] = {"kept": kept, "of": len(stack.blocks)}
            if len(kept) < len(stack.blocks):
                surgery.keep_blocks(model, stack, kept)
        context.progress(1.0, "the student is there")

    def _neurons(self, model: PreTrainedModel, context: Context) -> list[tuple[anatomy.FeedForward, Tensor]]:
        """The neurons to keep, as they matter in the whole model."""
        ffns = [ffn for ffn in self._kept_ffns(model) if self._width(ffn) < ffn.width]
        if not ffns:
            return []
        scores: dict[str, Tensor] = {}
        if self.criterion == "wanda":
            outputs = [ffn.output for ffn in ffns]
            found = input_moments(model, outputs, context.calibration, gram=False, progress=context.progress)
            scores = {path: wanda(view(model, path).weight.cpu(), found[path].rms) for path in outputs}
        else:
            scores = {ffn.output: _magnitudes(model, ffn) for ffn in ffns}
        return [(ffn, top_indices(scores[ffn.output], self._width(ffn))) for ffn in ffns]

    def _kept_ffns(self, model: PreTrainedModel) -> list[anatomy.FeedForward]:
        left = {block.path for block in gone(model, self.layers, self.choose)}
        return [ffn for block in anatomy.of(model).blocks if block.path not in left for ffn in block.ffns]

    def _width(self, ffn: anatomy.FeedForward) -> int:
        return kept_count(ffn.width, self.ffn, self.round_to)


def _magnitudes(model: PreTrainedModel, ffn: anatomy.FeedForward) -> Tensor:
    """Product of the norms of each neuron's input rows and output column, (W,)."""
    found = view(model, ffn.output).weight.detach().double().norm(dim=0).cpu()
    for path in ffn.inputs:
        found = found * view(model, path).weight.detach().double().norm(dim=1).cpu()
    return found
