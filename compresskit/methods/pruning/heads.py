"""``pruning.heads``: fewer attention heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.moments import Moments, input_moments
from compresskit.calibrate.saliency import saliency
from compresskit.core import surgery
from compresskit.core.anatomy import Attention
from compresskit.core.compressor import Compressor, Gain, Need
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import view
from compresskit.methods.pruning import _criteria
from compresskit.methods.pruning._shared import group_sites, kept_count, refit_output, refuse_unplain
from compresskit.registry import register


@register
class Heads(Compressor):
    """Fewer attention heads: the least important go, and the output projection is refitted.

    With grouped key-value heads either whole groups go, or every group loses equally many query heads. The attentions
    of a T5 stack share one relative position table, so they lose the same heads. One head always stays.
    """

    family: ClassVar[str] = "pruning"
    name: ClassVar[str] = "heads"
    sites: ClassVar[frozenset[str]] = frozenset({"attention"})
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory", "compute", "latency"})
    paper: ClassVar[str] = "Michel et al., 2019 (arXiv 1905.10650); Sun et al., Wanda, 2023 (arXiv 2306.11695)"

    keep: float = Field(0.75, gt=0, le=1, description="share of query heads to keep in each attention")
    criterion: Literal["wanda", "magnitude", "taylor"] = Field(
        "wanda", description="what decides: wanda and taylor look at calibration data"
    )
    refit: bool = Field(True, description="refit the output projection by least squares on the calibration data")
    unit: Literal["auto", "head", "group"] = Field(
        "auto",
        description="with grouped key-value heads: single query heads of every group, whole groups, or the better",
    )

    def requirements(self) -> frozenset[Need]:
        looks = self.refit or self.criterion in ("wanda", "taylor")
        return self.needs if looks else frozenset()

    def nothing_asked(self) -> str | None:
        """All heads kept."""
        return "keep 1.0 keeps every head" if self.keep == 1.0 else None

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Known beforehand where every query head has its own key-value head."""
        saved = 0
        for site in sites:
            part: Attention = site.part
            if part.kv_heads != part.heads:
                return None
            gone = (part.heads - kept_count(part.heads, self.keep)) * part.head_dim
            output = view(model, part.output)
            saved += gone * output.out_features * output.weight.element_size()
            for rows in (part.query, part.key, part.value):
                plain = view(model, rows.path)
                saved += gone * (plain.in_features + (plain.bias is not None)) * plain.weight.element_size()
        return saved

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        part: Attention = site.part
        if part.heads == 1 and self.keep < 1:
            return "it has a single head"
        return refuse_unplain(model, part.members)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.keep == 1.0:
            return
        outputs = [site.part.output for site in sites]
        moments: dict[str, Moments] = {}
        if self.refit or self.criterion == "wanda":
            moments = input_moments(model, outputs, context.calibration, gram=self.refit, progress=context.progress)
        scores = self._scores(model, sites, moments, context)
        for group in group_sites(sites):
            total = sum(
                (scores[site.path] / scores[site.path].sum().clamp(min=1e-300) for site in group), torch.zeros(())
            )
            kept = self._choose(group[0].part, total)
            for site in group:
                part: Attention = site.part
                detail = {"kept": kept, "of": part.heads}
                if self.refit:
                    index = surgery.head_index(kept, part.head_dim)
                    detail.update(refit_output(model, part.output, moments[part.output], index, context, "heads"))
                surgery.keep_heads(model, part, kept)
                context.details[site.path] = detail

    def _scores(
        self, model: PreTrainedModel, sites: Sequence[Site], moments: dict[str, Moments], context: Context
    ) -> dict[str, Tensor]:
        """One score a query head, (H,), for each site."""
        parts: list[Attention] = [site.part for site in sites]
        if self.criterion == "taylor":
            groups = {part.output: part.heads for part in parts}
            found = saliency(model, list(groups), context.calibration, groups=groups, seed=context.seed)
            return {site.path: found[site.part.output].double().cpu() for site in sites}
        scores = {}
        for site, part in zip(sites, parts, strict=True):
            output = view(model, part.output).weight
            if self.criterion == "wanda":
                each = _criteria.wanda(moments[part.output].square_sum, moments[part.output].count, output).square()
            else:
                value = view(model, part.value.path).weight[part.value.start : part.value.stop].double()
                repeated = value.unflatten(0, (part.kv_heads, -1)).repeat_interleave(part.heads // part.kv_heads, 0)
                each = output.double().square().sum(0) * repeated.flatten(0, 1).square().sum(1)
            scores[site.path] = each.double().cpu().unflatten(0, (part.heads, -1)).sum(-1)
        return scores

    def _choose(self, part: Attention, score: Tensor) -> list[int]:
        """Query heads to keep: the best single ones of every group, or the best whole groups."""
        size = part.heads // part.kv_heads
        table = score.unflatten(0, (part.kv_heads, size))
        single = kept_count(size, self.keep)
        within = torch.sort(table, dim=1, descending=True, stable=True).indices[:, :single]
        heads = sorted(int(group * size + head) for group in range(part.kv_heads) for head in within[group])
        whole = kept_count(part.kv_heads, self.keep)
        best = torch.sort(table.sum(1), descending=True, stable=True).indices[:whole].tolist()
        groups = sorted(group * size + head for group in best for head in range(size))
        if size == 1 or self.unit == "group":
            return groups
        if self.unit == "head":
            return heads
        # The better of the two keeps more importance for the heads that it keeps, and must remove something.
        options = [option for option in (heads, groups) if len(option) < part.heads] or [groups]
        return max(options, key=lambda option: (float(score[option].sum()) / len(option), -len(option)))
