"""``pruning.layers``: fewer blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from transformers import PreTrainedModel

from compresskit.calibrate.moments import block_similarities
from compresskit.core import anatomy, surgery
from compresskit.core.compressor import Compressor, Gain, Need
from compresskit.core.context import Context
from compresskit.core.cutting import block_bytes
from compresskit.core.sites import Site
from compresskit.methods.pruning._shared import kept_count, shared_with
from compresskit.registry import register

_DEFAULT_KEEP = 0.75


@register
class Layers(Compressor):
    """Fewer blocks: of each stack those that turn their input least go, or those that are listed.

    ``keep`` is the share of the matched blocks of each stack. ``drop`` counts the model's blocks from 0, in an
    encoder-decoder the encoder's first. A block that others depend on (T5's first, which holds the relative position
    table) stays, and so does one block of every stack. The result is a stock checkpoint.
    """

    family: ClassVar[str] = "pruning"
    name: ClassVar[str] = "layers"
    sites: ClassVar[frozenset[str]] = frozenset({"block"})
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory", "compute", "latency"})
    paper: ClassVar[str] = "Men et al., ShortGPT, 2024 (arXiv 2403.03853); Sajjad et al., 2020 (arXiv 2004.03844)"

    keep: float | None = Field(None, gt=0, le=1, description="share of blocks to keep in each stack; 0.75 by default")
    drop: tuple[int, ...] | None = Field(None, description="blocks to remove, by index from 0, instead of `keep`")
    criterion: Literal["influence", "last", "alternate"] = Field(
        "influence",
        description="which go: influence (least block influence, 1 - cosine of input and output), last (the top ones), "
        "alternate (every other one from the top)",
    )

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Layers:
        if self.drop is not None and self.keep is not None:
            raise ValueError("give keep or drop, not both")
        if self.drop is not None and (len(set(self.drop)) != len(self.drop) or any(index < 0 for index in self.drop)):
            raise ValueError("drop lists each block once, from 0")
        return self

    @property
    def _keep(self) -> float:
        return _DEFAULT_KEEP if self.keep is None else self.keep

    def requirements(self) -> frozenset[Need]:
        looks = self.drop is None and self.criterion == "influence" and self._keep < 1
        return self.needs if looks else frozenset()

    def nothing_asked(self) -> str | None:
        """All blocks kept."""
        if self.drop is not None:
            return None if self.drop else "drop lists no block"
        return "keep 1.0 keeps every block" if self.keep == 1.0 else None

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Bytes of the blocks that go; the blocks of a stack are of one size unless they were pruned before."""
        if self.drop is not None:
            paths = [block.path for block in anatomy.of(model).blocks]
            return sum(block_bytes(model, paths[index]) for index in self.drop)
        saved = 0
        for _, blocks in _by_stack(model, sites):
            sizes = {block_bytes(model, site.path) for site in blocks if site.part.pinned is None}
            gone = self._surplus(blocks)
            if len(sizes) > 1 and gone:
                return None
            saved += gone * sum(sizes)
        return saved

    def refuse(self, model: PreTrainedModel, sites: Sequence[Site]) -> dict[Site, str]:
        if self.drop is not None:
            reason = self._impossible_drop(model, sites)
            return dict.fromkeys(sites, reason) if reason else {}
        reasons: dict[Site, str] = {}
        stacks = _by_stack(model, sites)
        for _, blocks in stacks:
            if all(site.part.pinned for site in blocks):
                reasons.update({site: site.part.pinned for site in blocks})
            for site in blocks:
                other = shared_with(model, site.path)
                if other is not None:
                    reasons[site] = f"it shares parameters with {other}: drop layers before sharing"
        left = [site for site in sites if site not in reasons]
        if left and self._keep < 1 and not any(self._surplus(blocks) for _, blocks in _by_stack(model, left)):
            counts = " and ".join(str(len(blocks)) for _, blocks in _by_stack(model, left))
            reasons.update(dict.fromkeys(left, f"keep {self._keep:g} of {counts} blocks keeps them all"))
        return reasons

    def _impossible_drop(self, model: PreTrainedModel, sites: Sequence[Site]) -> str | None:
        """Why the listed blocks can't go, or None."""
        body = anatomy.of(model)
        named = {site.path for site in sites}
        for index in self.drop or ():
            if index >= len(body.blocks):
                return f"block {index} doesn't exist: the model has {len(body.blocks)}, counted from 0"
            block = body.blocks[index]
            if block.pinned:
                return f"block {index} can't go: {block.pinned}"
            if block.path not in named:
                return f"block {index} is {block.path}, which is not among the targets"
            other = shared_with(model, block.path)
            if other is not None:
                return f"block {index} shares parameters with {other}: drop layers before sharing"
        gone = {body.blocks[index].path for index in self.drop or ()}
        for stack in body.stacks:
            if {block.path for block in stack.blocks} <= gone:
                return f"nothing would be left of the {stack.name}"
        return None

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.nothing_asked():
            return
        body = anatomy.of(model)
        influence: dict[str, float] = {}
        if self.drop is not None:
            gone = {body.blocks[index].path for index in self.drop}
        else:
            if self.criterion == "influence":
                paths = [site.path for site in sites]
                influence = block_similarities(model, paths, context.calibration, progress=context.progress)
            gone = {path for _, blocks in _by_stack(model, sites) for path in self._weakest(blocks, influence)}
        for stack in body.stacks:
            kept = [block.index for block in stack.blocks if block.path not in gone]
            if len(kept) == len(stack.blocks):
                continue
            detail = {
                "kept": len(kept), "of": len(stack.blocks),
                "dropped": [block.index for block in stack.blocks if block.path in gone],
            }  # fmt: skip
            known = {block.index: round(influence[block.path], 6) for block in stack.blocks if block.path in influence}
            context.details[stack.path] = detail | ({"influence": known} if known else {})
            surgery.keep_blocks(model, stack, kept)
        context.progress(1.0, "blocks removed")

    def _surplus(self, blocks: Sequence[Site]) -> int:
        """How many of the matched ``blocks`` of one stack go."""
        loose = [site for site in blocks if site.part.pinned is None]
        return min(len(blocks) - kept_count(len(blocks), self._keep), len(loose))

    def _weakest(self, blocks: Sequence[Site], influence: dict[str, float]) -> list[str]:
        """Paths of those of one stack that go."""
        loose = [site.path for site in blocks if site.part.pinned is None]
        order = loose[::-1]
        if self.criterion == "alternate":
            order = order[1::2] + order[::2]
        elif self.criterion == "influence":
            order = sorted(loose, key=influence.__getitem__)
        return order[: self._surplus(blocks)]


def _by_stack(model: PreTrainedModel, sites: Sequence[Site]) -> list[tuple[anatomy.Stack, list[Site]]]:
    """The sites of each stack that has any, in order."""
    found = []
    for stack in anatomy.of(model).stacks:
        paths = {block.path for block in stack.blocks}
        mine = [site for site in sites if site.path in paths]
        if mine:
            found.append((stack, mine))
    return found
