"""``pruning.layers``: fewer blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from transformers import PreTrainedModel

from compresskit.calibrate.moments import block_similarities
from compresskit.core import anatomy, surgery
from compresskit.core.anatomy import Block
from compresskit.core.compressor import Compressor, Gain, Need
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.methods.pruning._shared import kept_count
from compresskit.registry import register


@register
class Layers(Compressor):
    """Fewer blocks: those that turn their input least go, or those that are listed.

    Blocks are counted through all stacks, an encoder's first; of every stack at least one stays. The result is a stock
    checkpoint.
    """

    family: ClassVar[str] = "pruning"
    name: ClassVar[str] = "layers"
    sites: ClassVar[frozenset[str]] = frozenset({"block"})
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory", "compute", "latency"})
    paper: ClassVar[str] = "Men et al., ShortGPT, 2024 (arXiv 2403.03853); Sajjad et al., 2020 (arXiv 2004.03844)"

    keep: float | None = Field(None, gt=0, le=1, description="share of blocks to keep (default .75)")
    drop: tuple[int, ...] | None = Field(None, description="blocks to remove, by index, instead of `keep`")
    criterion: Literal["influence"] = Field("influence", description="block influence: 1 - cosine of input and output")

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Layers:
        if self.drop is not None and self.keep is not None:
            raise ValueError("give keep or drop, not both")
        if self.drop is not None and (len(set(self.drop)) != len(self.drop) or any(index < 0 for index in self.drop)):
            raise ValueError("drop lists each block once, from 0")
        return self

    def requirements(self) -> frozenset[Need]:
        return frozenset() if self.drop is not None else self.needs

    def nothing_asked(self) -> str | None:
        """All blocks kept."""
        if self.drop is not None:
            return None if self.drop else "drop lists no block"
        return "keep 1.0 keeps every block" if self.keep == 1.0 else None

    def refuse(self, model: PreTrainedModel, sites: Sequence[Site]) -> dict[Site, str]:
        reasons = {site: site.part.pinned for site in sites if site.part.pinned}
        if self.drop is None:
            return reasons
        body = anatomy.of(model)
        paths = [block.path for block in body.blocks]
        pinned = {block.path: block.pinned for block in body.blocks if block.pinned}
        for index in self.drop:
            if index >= len(paths):
                return dict.fromkeys(sites, f"block {index} doesn't exist: the model has {len(paths)}, from 0")
            if paths[index] in pinned:
                return dict.fromkeys(sites, f"block {index} can't go: {pinned[paths[index]]}")
        for stack in body.stacks:
            if {block.path for block in stack.blocks} <= {paths[index] for index in self.drop}:
                return dict.fromkeys(sites, f"nothing would be left of the {stack.name}")
        return reasons

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.nothing_asked():
            return
        body = anatomy.of(model)
        candidates: list[Block] = [site.part for site in sites]
        gone = self._gone(model, body, candidates, context)
        for stack in body.stacks:
            kept = [block.index for block in stack.blocks if block.path not in gone]
            if len(kept) < len(stack.blocks):
                surgery.keep_blocks(model, stack, kept)
                context.details[stack.path] = {"kept": kept, "of": len(stack.blocks)}

    def _gone(
        self, model: PreTrainedModel, body: anatomy.Anatomy, candidates: list[Block], context: Context
    ) -> set[str]:
        if self.drop is not None:
            return {body.blocks[index].path for index in self.drop}
        paths = [block.path for block in candidates]
        influence = block_similarities(model, paths, context.calibration, progress=context.progress)
        context.details["influence"] = influence
        wanted = len(body.blocks) - kept_count(len(body.blocks), self.keep if self.keep is not None else 0.75)
        left = {stack.path: len(stack.blocks) for stack in body.stacks}
        home = {block.path: stack.path for stack in body.stacks for block in stack.blocks}
        gone: set[str] = set()
        for path in sorted(paths, key=lambda path: (influence[path], path)):
            if len(gone) < wanted and left[home[path]] > 1:
                gone.add(path)
                left[home[path]] -= 1
        return gone
