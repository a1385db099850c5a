"""``pruning.ffn``: narrower feed-forward networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.moments import Moments, input_moments
from compresskit.calibrate.saliency import saliency
from compresskit.core import surgery
from compresskit.core.anatomy import FeedForward
from compresskit.core.compressor import Compressor, Gain, Need, Walk
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import view
from compresskit.methods.pruning import _criteria
from compresskit.methods.pruning._shared import kept_count, refit_output, refuse_unplain
from compresskit.numerics.refit import massive, top_indices
from compresskit.registry import register


@register
class Ffn(Compressor):
    """Narrower feed-forward networks: the least important neurons go, and the output projection is refitted.

    Gate, up and down projections of a gated network lose the same neurons. With a refit, neurons of massive
    activation are never dropped: the refit would blow the others up to imitate them.
    """

    family: ClassVar[str] = "pruning"
    name: ClassVar[str] = "ffn"
    sites: ClassVar[frozenset[str]] = frozenset({"ffn"})
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory", "compute", "latency"})
    walk: ClassVar[Walk] = "block"
    paper: ClassVar[str] = "Sun et al., Wanda, 2023 (arXiv 2306.11695); Ma et al., LLM-Pruner, 2023 (arXiv 2305.11627)"

    keep: float = Field(0.75, gt=0, le=1, description="share of neurons to keep in each network")
    criterion: Literal["wanda", "magnitude", "taylor", "lamp", "fpgm", "random"] = Field(
        "wanda",
        description="what decides: wanda and taylor look at calibration data; lamp, fpgm, random are libraries'",
    )
    refit: bool = Field(True, description="refit the output projection by least squares on the calibration data")
    round_to: int = Field(1, ge=1, description="widths become multiples of this")

    def requirements(self) -> frozenset[Need]:
        looks = self.refit or self.criterion in ("wanda", "taylor")
        return self.needs if looks else frozenset()

    def nothing_asked(self) -> str | None:
        """All neurons kept."""
        return "keep 1.0 keeps every neuron" if self.keep == 1.0 else None

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Rows of the inputs with their biases, columns of the output."""
        saved = 0
        for site in sites:
            ffn: FeedForward = site.part
            gone = ffn.width - kept_count(ffn.width, self.keep, self.round_to)
            for path in ffn.inputs:
                plain = view(model, path)
                saved += gone * (plain.in_features + (plain.bias is not None)) * plain.weight.element_size()
            output = view(model, ffn.output)
            saved += gone * output.out_features * output.weight.element_size()
        return saved

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return refuse_unplain(model, site.part.members)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.keep == 1.0:
            return
        networks: list[FeedForward] = [site.part for site in sites]
        outputs = [ffn.output for ffn in networks]
        moments: dict[str, Moments] = {}
        if self.refit or self.criterion == "wanda":
            moments = input_moments(model, outputs, context.calibration, gram=self.refit)
        scores: dict[str, Tensor] = {}
        if self.criterion == "taylor":
            scores = saliency(model, outputs, context.calibration, seed=context.seed)
        for number, (site, ffn) in enumerate(zip(sites, networks, strict=True)):
            count = kept_count(ffn.width, self.keep, self.round_to)
            found = moments.get(ffn.output)
            pinned = massive(found.square_sum) if self.refit and found is not None else None
            score = scores[ffn.output] if ffn.output in scores else self._score(model, ffn, found, context.seed)
            index = top_indices(score.cpu(), count, pinned)
            detail = {"kept": len(index), "of": ffn.width, "pinned": 0 if pinned is None else len(pinned)}
            if self.refit and found is not None:
                detail.update(refit_output(model, ffn.output, found, index, context, "neurons"))
            surgery.keep_neurons(model, ffn, index)
            context.details[site.path] = detail
            context.progress((number + 1) / len(sites), site.path)

    def _score(self, model: PreTrainedModel, ffn: FeedForward, moments: Moments | None, seed: int) -> Tensor:
        inputs, output = [view(model, path) for path in ffn.inputs], view(model, ffn.output)
        if self.criterion in _criteria.LIBRARY:
            return _criteria.from_library(self.criterion, inputs, output, seed)
        if self.criterion == "wanda" and moments is not None:
            return _criteria.wanda(moments.square_sum, moments.count, output.weight)
        return _criteria.magnitude([item.weight for item in inputs], output.weight)
