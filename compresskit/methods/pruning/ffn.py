"""``pruning.ffn``: narrower feed-forward networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.moments import Moments
from compresskit.calibrate.saliency import saliency
from compresskit.core import surgery
from compresskit.core.anatomy import FeedForward
from compresskit.core.compressor import Compressor, Gain, Need
from compresskit.core.context import Context
from compresskit.core.cutting import neuron_bytes
from compresskit.core.sites import Site
from compresskit.core.weights import view
from compresskit.methods.pruning import _criteria, _shared
from compresskit.methods.pruning._shared import kept_count
from compresskit.numerics import importance
from compresskit.numerics.refit import Refit, massive
from compresskit.registry import register

_LOOKS_AT_DATA = frozenset({"wanda", "obs", "taylor", "activation"})


@register
class Ffn(Compressor):
    """Narrower feed-forward networks: the least important neurons go, and the output projection is refitted.

    Gate, up and down projections of a gated network lose the same neurons. The refit is least squares with a ridge
    towards the weights as they were, on the second moments of the calibration data. With it, neurons of massive
    activation are never dropped: it would blow the others up to imitate them.
    """

    family: ClassVar[str] = "pruning"
    name: ClassVar[str] = "ffn"
    sites: ClassVar[frozenset[str]] = frozenset({"ffn"})
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory", "compute", "latency"})
    paper: ClassVar[str] = "Sun et al., Wanda, 2023 (arXiv 2306.11695); Hassibi & Stork, Optimal Brain Surgeon, 1993"

    keep: float = Field(0.75, gt=0, le=1, description="share of neurons to keep in each network")
    criterion: Literal["wanda", "obs", "taylor", "magnitude", "lamp", "fpgm", "activation", "random"] = Field(
        "wanda",
        description="which neurons matter: wanda (activation times weight), obs (what a refit can't make up for; the "
        "best, and slower), taylor (effect on the model's output), or torch-pruning's magnitude, lamp, fpgm, "
        "activation, random",
    )
    refit: bool = Field(True, description="refit the output projection by least squares on the calibration data")
    round_to: int = Field(1, ge=1, description="widths become multiples of this")

    @model_validator(mode="after")
    def _obs_refits(self) -> Ffn:
        if self.criterion == "obs" and not self.refit:
            raise ValueError("criterion obs picks neurons for a refit: set refit: true, or use another criterion")
        return self

    def requirements(self) -> frozenset[Need]:
        looks = self.keep < 1 and (self.refit or self.criterion in _LOOKS_AT_DATA)
        return self.needs if looks else frozenset()

    def nothing_asked(self) -> str | None:
        """All neurons kept."""
        return "keep 1.0 keeps every neuron" if self.keep == 1.0 else None

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Rows of the inputs with their biases, columns of the output."""
        ffns: list[FeedForward] = [site.part for site in sites]
        return sum((ffn.width - self._width(ffn)) * neuron_bytes(model, ffn) for ffn in ffns)

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        ffn: FeedForward = site.part
        reason = _shared.refuse_unplain(model, ffn.members)
        if reason is None and self.keep < 1 and self._width(ffn) == ffn.width:
            return f"keep {self.keep:g} of {ffn.width} neurons, in multiples of {self.round_to}, keeps them all"
        return reason

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.keep == 1.0:
            return
        decided = list(self._decisions(model, sites, context))
        for site, index, found, detail in decided:
            ffn: FeedForward = site.part
            surgery.keep_neurons(model, ffn, index)
            if found is not None:
                _shared.store(model, ffn.output, found)
            context.details[site.path] = detail
        context.progress(1.0, "neurons removed")

    def _decisions(
        self, model: PreTrainedModel, sites: Sequence[Site], context: Context
    ) -> Iterator[tuple[Site, Tensor, Refit | None, dict[str, float]]]:
        """What to keep at each site and the refit to it; the model is untouched while this runs."""
        saliencies: dict[str, Tensor] = {}
        if self.criterion == "taylor":
            outputs = [site.part.output for site in sites]
            saliencies = saliency(model, outputs, context.calibration, seed=context.seed, progress=context.progress)
        for number, (site, moments) in enumerate(self._measured(model, sites, context)):
            ffn: FeedForward = site.part
            pinned = massive(moments.square_sum) if self.refit and moments is not None else None
            count = self._width(ffn)
            if ffn.output in saliencies:
                index = importance.top_indices(saliencies[ffn.output], count, pinned)
            elif self.criterion == "obs" and moments is not None:
                index = self._eliminate(model, ffn, moments, pinned)
            else:
                scores = self._scores(model, ffn, moments, context.seed + number)
                index = importance.top_indices(scores, count, pinned)
            found = None
            if self.refit and moments is not None:
                found = _shared.fitted(model, ffn.output, moments, index)
            detail = {"kept": len(index), "of": ffn.width, "pinned": 0 if pinned is None else len(pinned)}
            yield site, index, found, detail | _shared.told(found)

    def _measured(
        self, model: PreTrainedModel, sites: Sequence[Site], context: Context
    ) -> Iterator[tuple[Site, Moments | None]]:
        if self.refit or self.criterion in ("wanda", "activation"):
            yield from _shared.measured(model, sites, context, gram=self.refit)
        else:
            yield from ((site, None) for site in sites)

    def _eliminate(self, model: PreTrainedModel, ffn: FeedForward, moments: Moments, pinned: Tensor | None) -> Tensor:
        output = view(model, ffn.output)
        covariance = _shared.covariance_of(moments, centred=output.bias is not None)
        weight, count = output.weight.cpu(), self._width(ffn)
        return _shared.solved(
            ffn.output,
            lambda: importance.eliminate(weight, covariance, count, ridge=_shared.RIDGE, pinned=pinned),
        )

    def _scores(self, model: PreTrainedModel, ffn: FeedForward, moments: Moments | None, seed: int) -> Tensor:
        inputs, output = [view(model, path) for path in ffn.inputs], view(model, ffn.output)
        if self.criterion == "wanda" and moments is not None:
            return importance.wanda(output.weight.cpu(), moments.rms)
        abs_sum = None if moments is None else moments.abs_sum.to(output.weight.device)
        return _criteria.from_library(self.criterion, inputs, output, seed=seed, abs_sum=abs_sum)

    def _width(self, ffn: FeedForward) -> int:
        return kept_count(ffn.width, self.keep, self.round_to)
