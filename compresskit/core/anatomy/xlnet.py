"""XLNet: relative attention whose projections are parameters, hidden states with the tokens first."""

from __future__ import annotations

from typing import ClassVar

from transformers import PreTrainedModel

from compresskit.core.anatomy.family import (
    Family,
    base_prefix,
    output_embedding_path,
    register_family,
    rows_of,
    tables,
    uniform,
)
from compresskit.core.anatomy.parts import Anatomy, Block, FeedForward, Stack

_NO_ATTENTION = "XLNet attends by a function of its own, with two streams and relative positions, that nothing replaces"


@register_family
class XLNet(Family):
    """Blocks at ``layer``; the projections of ``rel_attn`` are matrices like others, its heads stay."""

    model_types: ClassVar[tuple[str, ...]] = ("xlnet",)

    def read(self, model: PreTrainedModel) -> Anatomy:
        prefix = base_prefix(model)
        stack = f"{prefix}layer"
        count = len(model.get_submodule(stack))  # type: ignore[arg-type]
        blocks = tuple(self._block(model, f"{stack}.{index}", index) for index in range(count))
        return Anatomy(
            "xlnet",
            prefix,
            (Stack("encoder", stack, blocks),),
            tables(model, {f"{prefix}word_embedding": "word"}),
            output_embedding_path(model),
            lacks={"attention": _NO_ATTENTION},
            time_first=True,
        )

    def _block(self, model: PreTrainedModel, path: str, index: int) -> Block:
        inner = f"{path}.ff.layer_1"
        ffn = FeedForward(f"{path}.ff", (inner,), f"{path}.ff.layer_2", rows_of(model, inner))
        return Block(path, index, (), (ffn,))

    def sync_config(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        model.config.n_layer = len(anatomy.blocks)
        width = uniform([ffn.width for ffn in anatomy.ffns])
        if width is not None:
            model.config.d_inner = width
