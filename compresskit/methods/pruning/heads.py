"""``pruning.heads``: fewer attention heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.moments import Moments
from compresskit.calibrate.saliency import saliency
from compresskit.core import surgery
from compresskit.core.anatomy import Attention
from compresskit.core.compressor import Compressor, Gain, Need
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import view
from compresskit.methods.pruning import _shared
from compresskit.methods.pruning._shared import kept_count
from compresskit.numerics import importance
from compresskit.numerics.refit import Refit
from compresskit.registry import register


@register
class Heads(Compressor):
    """Fewer attention heads: the least important go, and the output projection is refitted.

    With grouped key-value heads, those that stay keep equally many query heads each, and their number may shrink too.
    The attentions of a T5 stack share one relative position table, so they lose the same heads: those that matter
    least in all of them together. One head always stays.
    """

    family: ClassVar[str] = "pruning"
    name: ClassVar[str] = "heads"
    sites: ClassVar[frozenset[str]] = frozenset({"attention"})
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory", "compute", "latency"})
    paper: ClassVar[str] = "Michel et al., 2019 (arXiv 1905.10650); Sun et al., Wanda, 2023 (arXiv 2306.11695)"

    keep: float = Field(0.75, gt=0, le=1, description="share of query heads to keep in each attention")
    criterion: Literal["wanda", "taylor", "magnitude"] = Field(
        "wanda",
        description="which heads matter: wanda (activation times weight), taylor (effect on the model's output), "
        "magnitude (weights alone)",
    )
    refit: bool = Field(True, description="refit the output projection by least squares on the calibration data")
    unit: Literal["auto", "head", "group"] = Field(
        "auto",
        description="what goes where query heads share key-value heads: head (query heads of every group), group "
        "(key-value heads with all their query heads), or auto, whichever keeps more importance",
    )

    def requirements(self) -> frozenset[Need]:
        looks = self.keep < 1 and (self.refit or self.criterion in ("wanda", "taylor"))
        return self.needs if looks else frozenset()

    def nothing_asked(self) -> str | None:
        """All heads kept."""
        return "keep 1.0 keeps every head" if self.keep == 1.0 else None

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Rows of the input projections with their biases, columns of the output; None where data decide."""
        saved = 0
        for site in sites:
            part: Attention = site.part
            shapes = self._shapes(part)
            if len(shapes) > 1:
                return None
            groups, each = shapes[0]
            gone = (part.heads - groups * each) * part.head_dim
            output = view(model, part.output)
            saved += gone * output.out_features * output.weight.element_size()
            for rows in (part.query, part.key, part.value):
                plain = view(model, rows.path)
                lost = gone if rows is part.query else (part.kv_heads - groups) * part.head_dim
                saved += lost * (plain.in_features + (plain.bias is not None)) * plain.weight.element_size()
        return saved

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        part: Attention = site.part
        reason = _shared.refuse_unplain(model, part.members)
        if reason is None and self.keep < 1 and (part.kv_heads, part.heads // part.kv_heads) in self._shapes(part):
            groups = "" if part.kv_heads == part.heads else f", in {part.kv_heads} groups by unit {self.unit},"
            return f"keep {self.keep:g} of {part.heads} heads{groups} keeps them all"
        return reason

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.keep == 1.0:
            return
        moments: dict[str, Moments] = {}
        if self.refit or self.criterion == "wanda":
            found = _shared.measured(model, sites, context, gram=self.refit, limit=2**40)
            moments = {site.path: each for site, each in found}
        scores = self._scores(model, sites, moments, context)
        decided: list[tuple[Site, list[int], Refit | None]] = []
        for group in _groups(sites):
            together = torch.stack([_shares(scores[site.path]) for site in group]).sum(0)
            kept = self._choose(group[0].part, together)
            index = surgery.head_index(kept, group[0].part.head_dim)
            for site in group:
                fitted = None
                if self.refit:
                    fitted = _shared.fitted(model, site.part.output, moments[site.path], index)
                decided.append((site, kept, fitted))
        for site, kept, fitted in decided:
            part: Attention = site.part
            surgery.keep_heads(model, part, kept)
            if fitted is not None:
                _shared.store(model, part.output, fitted)
            groups = len({head // (part.heads // part.kv_heads) for head in kept})
            context.details[site.path] = {
                "kept": len(kept), "of": part.heads, "heads": kept, "key_value_heads": groups, **_shared.told(fitted)
            }  # fmt: skip
        context.progress(1.0, "heads removed")

    def _scores(
        self, model: PreTrainedModel, sites: Sequence[Site], moments: dict[str, Moments], context: Context
    ) -> dict[str, Tensor]:
        """One score a query head, (H,), for each site, additive over heads."""
        if self.criterion == "taylor":
            groups = {site.part.output: site.part.heads for site in sites}
            found = saliency(
                model, list(groups), context.calibration, groups=groups, seed=context.seed, progress=context.progress
            )
            return {site.path: found[site.part.output] for site in sites}
        if self.criterion == "magnitude":
            return {site.path: _magnitude(model, site.part) for site in sites}
        scores = {}
        for site in sites:
            weight = view(model, site.part.output).weight.cpu()
            scores[site.path] = importance.wanda(weight, moments[site.path].rms, site.part.head_dim).square()
        return scores

    def _shapes(self, part: Attention) -> list[tuple[int, int]]:
        """Possible (key-value heads, query heads of each) after pruning, all equally near to what was asked."""
        groups, each = part.kv_heads, part.heads // part.kv_heads
        if self.unit == "head" and each > 1:
            return [(groups, kept_count(each, self.keep))]
        if self.unit == "group" or each == 1:
            return [(kept_count(groups, self.keep), each)]
        wanted = kept_count(part.heads, self.keep)
        shapes = [(few, some) for few in range(1, groups + 1) for some in range(1, each + 1) if few * some <= wanted]
        most = max(few * some for few, some in shapes)
        return [(few, some) for few, some in shapes if few * some == most]

    def _choose(self, part: Attention, score: Tensor) -> list[int]:
        """Query heads to keep: of the best shape the best groups, and of each its best heads."""
        size = part.heads // part.kv_heads
        table = score.unflatten(0, (part.kv_heads, size))
        options = []
        for groups, each in self._shapes(part):
            inside = [importance.top_indices(row, each) for row in table]
            sums = table.new_tensor([float(row[index].sum()) for row, index in zip(table, inside, strict=True)])
            best = importance.top_indices(sums, groups).tolist()
            heads = [group * size + head for group in best for head in inside[group].tolist()]
            options.append((float(score[heads].sum()), heads))
        return max(options, key=lambda option: option[0])[1]


def _groups(sites: Sequence[Site]) -> list[list[Site]]:
    """Sites that must change alike together, others alone; in order."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.group or site.path, []).append(site)
    return list(groups.values())


def _shares(score: Tensor) -> Tensor:
    """Scores as shares of their sum, so that layers of another scale count the same."""
    return score.double().cpu() / score.double().cpu().sum().clamp(min=1e-300)


def _magnitude(model: PreTrainedModel, part: Attention) -> Tensor:
    """Σ over a head's channels of |value row|² · |output column|², (H,): the size of what it can write."""
    output = view(model, part.output).weight.double()
    value = view(model, part.value.path).weight[part.value.start : part.value.stop].double()
    rows = value.square().sum(1).unflatten(0, (part.kv_heads, part.head_dim))
    repeated = rows.repeat_interleave(part.heads // part.kv_heads, 0).reshape(-1)
    return importance.group_sums(output.square().sum(0) * repeated, part.head_dim)
