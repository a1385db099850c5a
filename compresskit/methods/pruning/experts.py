"""``pruning.experts``: fewer experts in each mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.calibrate.routing import expert_use
from compresskit.core import anatomy, surgery
from compresskit.core.compressor import Compressor, Gain, Need
from compresskit.core.context import Context
from compresskit.core.cutting import kept_count, shared_with
from compresskit.core.sites import Site
from compresskit.nn.experts import FUSED
from compresskit.registry import register


@register
class Experts(Compressor):
    """Fewer experts: of each mixture those that add least go, and their rows of the router with them.

    The router chooses among those that stay, as if the others had a probability of 0. A token is still computed by as
    many experts as before: the file shrinks, not the arithmetic. Equal numbers everywhere give a stock checkpoint.
    """

    family: ClassVar[str] = "pruning"
    name: ClassVar[str] = "experts"
    sites: ClassVar[frozenset[str]] = frozenset({"experts"})
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    paper: ClassVar[str] = "Lasby et al., REAP the Experts, 2025 (arXiv 2510.13999)"

    keep: float = Field(0.75, gt=0, le=1, description="share of experts to keep in each mixture")
    criterion: Literal["reap", "probability", "frequency"] = Field(
        "reap",
        description="which stay: reap (mean of router weight times norm of the expert's output over its tokens), "
        "probability (sum of router weights), frequency (number of tokens)",
    )

    def requirements(self) -> frozenset[Need]:
        return self.needs if self.keep < 1 else frozenset()

    def nothing_asked(self) -> str | None:
        """All experts kept."""
        return "keep 1.0 keeps every expert" if self.keep == 1.0 else None

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Exact: each expert's matrices, and its row of the router."""
        saved = 0
        for site in sites:
            bank: anatomy.Experts = site.part
            tensors = [*model.get_submodule(bank.path).parameters(), *model.get_submodule(bank.router).parameters()]
            one = sum(tensor.numel() * tensor.element_size() for tensor in tensors) // bank.count
            saved += one * (bank.count - self._count(bank))
        return saved

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        bank: anatomy.Experts = site.part
        module = model.get_submodule(bank.path)
        if type(module) not in FUSED:
            return f"experts in a {type(module).__name__} can't be cut: only fused ones that no step has changed"
        shared = shared_with(model, bank.path)
        if shared is not None:
            return f"{bank.path} shares parameters with {shared}: prune before sharing"
        if self.keep < 1 and self._count(bank) < bank.chosen:
            return f"keep {self.keep:g} leaves {self._count(bank)} experts, and each token takes {bank.chosen}"
        if self.keep < 1 and self._count(bank) == bank.count:
            return f"keep {self.keep:g} of {bank.count} experts keeps them all"
        return None

    def _count(self, bank: anatomy.Experts) -> int:
        return kept_count(bank.count, self.keep)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.nothing_asked():
            return
        # All is measured before anything is cut.
        found = expert_use(model, [site.path for site in sites], context.calibration)
        for number, site in enumerate(sites):
            bank: anatomy.Experts = site.part
            use = found[site.path]
            scores = {"reap": use.saliency, "probability": use.mass, "frequency": use.count}[self.criterion]
            kept = scores.argsort(descending=True, stable=True)[: self._count(bank)].sort().values
            lost = 1 - float(use.mass[kept].sum() / use.mass.sum().clamp(min=1e-300))
            context.details[site.path] = {"kept": kept.tolist(), "of": bank.count, "lost_probability": lost}
            surgery.keep_experts(model, bank, kept)
            context.progress((number + 1) / len(sites), site.path)
