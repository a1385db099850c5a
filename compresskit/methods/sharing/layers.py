"""``sharing.layers``: several blocks use one set of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import PreTrainedModel

from compresskit.core import anatomy, surgery
from compresskit.core.compressor import Compressor, Gain
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.errors import RecipeError
from compresskit.numerics import sharing
from compresskit.registry import register

_ALIKE = 0.1


@register
class Layers(Compressor):
    """Several blocks use one set of parameters, stored once on disk and in ONNX; computing costs what it did.

    The blocks stay distinct modules, so that cached generation keeps one slot for each. Layers of a trained model have
    little in common: expect a large loss unless a recovery follows.

    Blocks are counted from 0 through all stacks: of an encoder-decoder model with six and six, 0 … 5 is the encoder,
    6 … 11 the decoder. A group can't cross stacks. A pattern is laid over the targeted blocks of each stack, so that
    ``ignore`` keeps the first and the last block for themselves.
    """

    family: ClassVar[str] = "sharing"
    name: ClassVar[str] = "layers"
    sites: ClassVar[frozenset[str]] = frozenset({"block"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    paper: ClassVar[str] = "Lan et al., ALBERT, 2020 (arXiv 1909.11942); Liu et al., MobileLLM, 2024 (arXiv 2402.14905)"

    groups: tuple[tuple[int, ...], ...] | None = Field(
        None, description="blocks that share, by their number from 0 through all stacks: [[1, 2], [3, 4]]"
    )
    pattern: Literal["cyclic", "immediate"] | None = Field(
        None, description="cyclic 0 1 0 1 …, or immediate 0 0 1 1 … (the default), over each stack"
    )
    unique: int | None = Field(
        None, ge=1, description="distinct blocks that a pattern leaves in each stack; default: half of them"
    )
    init: Literal["pick", "mean"] = Field("pick", description="start from the first block of a group, or their mean")
    norms: bool = Field(True, description="share the norms too; false: each block keeps its own")

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Layers:
        if self.groups is None:
            return self
        if self.pattern is not None or self.unique is not None:
            raise ValueError("give groups, or a pattern, not both")
        flat = [index for group in self.groups for index in group]
        if not flat or any(len(group) < 2 for group in self.groups):
            raise ValueError("a group has at least two blocks")
        if len(flat) != len(set(flat)) or min(flat) < 0:
            raise ValueError("a block number is negative or stands twice")
        return self

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """What all but the first block of each group hold of their own."""
        saved = 0
        for group in self._groups(model, sites):
            names = self._shared_names(model, group[0])
            first = {id(model.get_parameter(f"{group[0].path}.{name}")) for name in names}
            freed = {}
            for block in group[1:]:
                for name in names:
                    parameter = model.get_parameter(f"{block.path}.{name}")
                    if id(parameter) not in first:
                        freed[id(parameter)] = parameter.numel() * parameter.element_size()
            saved += sum(freed.values())
        return saved

    def refuse(self, model: PreTrainedModel, sites: Sequence[Site]) -> dict[Site, str]:
        """Blocks that the model shares already.

        Raises:
            RecipeError: CK-T041, for a number in ``groups`` that is no targeted block; CK-T042, for a group that
                crosses stacks or whose blocks differ. (A pattern without one of its groups would be another pattern.)
        """
        if any(stack.repeats > 1 for stack in anatomy.of(model).stacks):
            return dict.fromkeys(sites, "ALBERT runs one set of layers several times: it shares all parameters already")
        if self.groups is not None:
            self._check_numbers(model, sites)
        for group in self._groups(model, sites):
            problem = self._problem(model, group)
            if problem:
                raise RecipeError(
                    "CK-T042",
                    "the blocks of a group can't share",
                    where=group[0].path,
                    why=problem,
                    fix="choose other groups" if self.groups is not None else "leave such blocks out with `ignore`",
                )
        return {}

    def _check_numbers(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        paths, chosen = [block.path for block in anatomy.of(model).blocks], {site.path for site in sites}
        for index in (index for group in self.groups or () for index in group):
            if index >= len(paths):
                raise RecipeError(
                    "CK-T041",
                    f"there is no block {index} to share",
                    why=f"the model has {len(paths)} blocks, 0 … {len(paths) - 1}",
                    fix="count from 0, through the encoder first, after the steps before this one",
                )
            if paths[index] not in chosen:
                raise RecipeError(
                    "CK-T041",
                    f"block {index} is in a group, but `targets` or `ignore` leaves it out",
                    where=paths[index],
                    fix="`groups` says it all: drop `targets` and `ignore`",
                )

    def _groups(self, model: PreTrainedModel, sites: Sequence[Site]) -> list[list[anatomy.Block]]:
        """The groups of two blocks or more."""
        body = anatomy.of(model)
        if self.groups is not None:
            return [[body.blocks[index] for index in group] for group in self.groups]
        chosen = {site.path for site in sites}
        found = []
        for stack in body.stacks:
            blocks = [block for block in stack.blocks if block.path in chosen]
            distinct = self.unique if self.unique is not None else (len(blocks) + 1) // 2
            pattern = sharing.cyclic if self.pattern == "cyclic" else sharing.immediate
            found += [[blocks[index] for index in group] for group in pattern(len(blocks), distinct) if len(group) > 1]
        return found

    def _problem(self, model: PreTrainedModel, group: Sequence[anatomy.Block]) -> str | None:
        stacks = [stack.name for stack in anatomy.of(model).stacks if set(group) & set(stack.blocks)]
        if len(stacks) > 1:
            return f"it crosses {' and '.join(stacks)}, whose blocks differ"
        first = self._shared_names(model, group[0])
        for block in group[1:]:
            other = self._shared_names(model, block)
            for name in (*first, *other):
                one, two = (str(found.get(name, "absent")) for found in (first, other))
                if one != two:
                    return (
                        f"{name} is {one} in {group[0].path} and {two} in {block.path}: share before other"
                        " steps change blocks apart, or share blocks that were changed alike"
                    )
        if self.init == "mean" and any("int" in kind for kind in first.values()):
            return "its weights are integer codes, of which there is no mean: share before quantizing, or init: pick"
        return None

    def _shared_names(self, model: PreTrainedModel, block: anatomy.Block) -> dict[str, str]:
        """Parameters of a block that it can share, and what each is; a relative position table stays, for its stack."""
        module = model.get_submodule(block.path)
        tables = tuple(f"{table}." for attention in block.attentions for table in attention.head_tables)
        own = () if self.norms else tuple(f"{name}." for name, part in module.named_modules() if _is_norm(part))
        return {
            name: f"{str(parameter.dtype).removeprefix('torch.')} {tuple(parameter.shape)}"
            for name, parameter in module.named_parameters(remove_duplicate=False)
            if not f"{block.path}.{name}".startswith(tables) and not name.startswith(own)
        }

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        groups = self._groups(model, sites)
        if not groups:
            context.nothing(f"no stack has more than {self.unique or 1} targeted blocks, so nothing is shared")
        apart = []
        for number, group in enumerate(groups):
            apart.append(self._share(model, group, context))
            context.progress((number + 1) / len(groups), group[0].path)
        if apart and max(apart) > _ALIKE:
            largest = max(len(group) for group in groups)
            context.warn(
                f"the blocks that now share lie up to {max(apart):.0%} of their norm from their mean (equal ones 0%,"
                f" unrelated ones {(1 - 1 / largest) ** 0.5:.0%}): without recovery by training much quality is lost"
            )

    def _share(self, model: PreTrainedModel, group: Sequence[anatomy.Block], context: Context) -> float:
        """Let the blocks of ``group`` share; returns how little they had in common."""
        source, *others = (block.path for block in group)
        names = list(self._shared_names(model, group[0]))
        parameters = [[model.get_parameter(f"{block.path}.{name}") for block in group] for name in names]
        floating = [each for each in parameters if each[0].is_floating_point()]
        apart = sharing.disagreement(floating)
        freed = {id(other): other.numel() for first, *rest in parameters for other in rest if other is not first}
        if self.init == "mean":
            with torch.no_grad():
                for each in floating:
                    each[0].copy_(sharing.mean(each))
        for name in names:
            for target in others:
                surgery.share_parameters(model, f"{source}.{name}", f"{target}.{name}")
        context.details[source] = {
            "shared_with": others,
            "init": self.init,
            "parameters_freed": sum(freed.values()),
            "relative_distance": round(apart, 4),
        }
        return apart


def _is_norm(module: nn.Module) -> bool:
    """LayerNorm, RMSNorm and the model families' own: LlamaRMSNorm, T5LayerNorm."""
    return type(module).__name__.endswith("Norm")
