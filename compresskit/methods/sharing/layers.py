"""``sharing.layers``: several blocks use one set of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import PreTrainedModel

from compresskit.core import anatomy, surgery
from compresskit.core.compressor import Compressor, Gain, Need
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.registry import register


@register
class Layers(Compressor):
    """Several blocks use one set of parameters, stored once on disk and in ONNX; computing costs what it did.

    The blocks stay distinct modules, so that cached generation keeps one slot for each. Layers of a trained model have
    little in common: expect a large loss unless a recovery follows. Blocks are counted through all stacks, an
    encoder's first; a group can't cross stacks.
    """

    family: ClassVar[str] = "sharing"
    name: ClassVar[str] = "layers"
    sites: ClassVar[frozenset[str]] = frozenset({"block"})
    needs: ClassVar[frozenset[Need]] = frozenset()
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    paper: ClassVar[str] = "Lan et al., ALBERT, 2020 (arXiv 1909.11942); Liu et al., MobileLLM, 2024 (arXiv 2402.14905)"

    groups: tuple[tuple[int, ...], ...] | None = Field(
        None, description="blocks that share, by index: [[1, 2], [3, 4]]"
    )
    pattern: Literal["cyclic", "immediate"] | None = Field(
        None, description="cyclic 0 1 0 1 …, or immediate 0 0 1 1 … (the default), over each stack"
    )
    unique: int | None = Field(None, ge=1, description="distinct blocks a stack under a pattern; default: half of them")
    init: Literal["pick", "mean"] = Field("pick", description="start from the first block of a group, or their mean")

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Layers:
        if self.groups is not None and (self.pattern is not None or self.unique is not None):
            raise ValueError("give groups, or a pattern, not both")
        flat = [index for group in self.groups or () for index in group]
        if len(flat) != len(set(flat)) or any(index < 0 for index in flat):
            raise ValueError("a block index is negative or in two groups")
        if any(len(group) < 2 for group in self.groups or ()):
            raise ValueError("a group has at least two blocks")
        return self

    def refuse(self, model: PreTrainedModel, sites: Sequence[Site]) -> dict[Site, str]:
        body = anatomy.of(model)
        if any(stack.repeats > 1 for stack in body.stacks):
            why = "ALBERT already runs one set of layers several times"
            return dict.fromkeys(sites, why)
        known = {block.path for block in body.blocks}
        reasons: dict[Site, str] = {}
        for group in self._groups(body, {site.path for site in sites}):
            wrong = self._problem(model, body, group, known)
            if wrong:
                reasons.update({site: wrong for site in sites if site.path in group})
        shared = {path for group in self._groups(body, {site.path for site in sites}) for path in group}
        for site in sites:
            if site.path not in shared:
                reasons.setdefault(site, "no group of this step names it")
        return reasons

    def _groups(self, body: anatomy.Anatomy, chosen: set[str]) -> list[list[str]]:
        """Groups of block paths, each inside one stack where the options can express it."""
        if self.groups is not None:
            paths = [block.path for block in body.blocks]
            return [
                [paths[index] if index < len(paths) else f"block {index}" for index in group] for group in self.groups
            ]
        found = []
        for stack in body.stacks:
            paths = [block.path for block in stack.blocks if block.path in chosen]
            unique = self.unique if self.unique is not None else (len(paths) + 1) // 2
            unique = min(unique, len(paths))
            buckets: list[list[str]] = [[] for _ in range(unique)]
            for index, path in enumerate(paths):
                cyclic = self.pattern == "cyclic"
                buckets[index % unique if cyclic else index * unique // len(paths)].append(path)
            found += [bucket for bucket in buckets if len(bucket) > 1]
        return found

    def _problem(self, model: PreTrainedModel, body: anatomy.Anatomy, group: list[str], known: set[str]) -> str | None:
        missing = [path for path in group if path not in known]
        if missing:
            return f"{missing[0]} doesn't exist: the model has {len(known)} blocks"
        stacks = {stack.name for stack in body.stacks for block in stack.blocks if block.path in group}
        if len(stacks) > 1:
            return "the group crosses the encoder and the decoder, whose blocks differ"
        first = _signature(model, group[0])
        for path in group[1:]:
            if _signature(model, path) != first:
                return f"{path} and {group[0]} have other shapes or layers; share before changing them apart"
        return None

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        groups = self._groups(anatomy.of(model), {site.path for site in sites})
        for number, group in enumerate(groups):
            source = group[0]
            for name in _shared_names(model, source):
                if self.init == "mean":
                    _average(model, [f"{path}.{name}" for path in group])
                for target in group[1:]:
                    surgery.share_parameters(model, f"{source}.{name}", f"{target}.{name}")
            context.details[source] = {"shared_with": group[1:], "init": self.init}
            context.progress((number + 1) / len(groups), source)


def _shared_names(model: nn.Module, path: str) -> list[str]:
    """Parameters of a block that it can share: all but a relative position table, which one block keeps for all."""
    names = [name for name, _ in model.get_submodule(path).named_parameters()]
    return [name for name in names if not name.endswith("relative_attention_bias.weight")]


def _signature(model: nn.Module, path: str) -> list[tuple[str, torch.Size, torch.dtype]]:
    block = model.get_submodule(path)
    wanted = set(_shared_names(model, path))
    return [(name, value.shape, value.dtype) for name, value in block.named_parameters() if name in wanted]


def _average(model: nn.Module, names: list[str]) -> None:
    """Set the first parameter to the mean of all; integer codes keep the first one's values."""
    parameters = [model.get_parameter(name) for name in names]
    if parameters[0].is_floating_point():
        with torch.no_grad():
            parameters[0].copy_(torch.stack([parameter.double() for parameter in parameters]).mean(0))
