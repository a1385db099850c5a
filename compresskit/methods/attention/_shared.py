"""What all attention replacements share: which sites they take, and how the settings get onto the modules."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import PreTrainedModel

from compresskit.core import surgery
from compresskit.core.compressor import Compressor, Gain
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.nn import attention


class AttentionReplacement(Compressor):
    """Lets self-attention modules compute something cheaper than softmax over all pairs; no weight changes."""

    family: ClassVar[str] = "attention"
    sites: ClassVar[frozenset[str]] = frozenset({"attention"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"compute", "latency"})

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the modules shall compute, as ``nn.attention.install`` takes it."""

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int:
        """None of the weights: the gain is in compute."""
        return 0

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        if site.part.cross:
            return "it is cross-attention: its queries and keys are positions of two different sequences"
        module, settings = model.get_submodule(site.path), self.settings()
        present = attention.settings_of(module)
        if present is not None and present["kind"] != settings["kind"]:
            return f"its attention was replaced by {present['kind']} attention before"
        return attention.why_not(model, module, settings)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        settings = self.settings()
        for number, site in enumerate(sites):
            context.progress(number / len(sites), site.path)
            surgery.set_attention(model, site.path, settings)
            context.details[site.path] = settings
        context.progress(1.0, f"{len(sites)} attention modules replaced")
