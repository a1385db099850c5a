"""T5 and its encoder: relative position bias in block 0 of a stack, used by all blocks of that stack."""

from __future__ import annotations

from typing import ClassVar

from transformers import PreTrainedModel

from compresskit.core.anatomy.family import (
    Family,
    output_embedding_path,
    register_family,
    rows_of,
    separate_attention,
    tables,
    uniform,
)
from compresskit.core.anatomy.parts import Anatomy, Attention, Block, FeedForward, Stack

_PROJECTIONS = ("q", "k", "v")


@register_family
class T5(Family):
    """Stacks ``encoder.block`` and, where there is one, ``decoder.block``."""

    model_types: ClassVar[tuple[str, ...]] = ("t5",)

    def read(self, model: PreTrainedModel) -> Anatomy:
        # T5's classifiers hold a T5Model as `transformer`; all other classes hold the stacks themselves.
        prefix = "transformer." if hasattr(model, "transformer") else ""
        inner = model.get_submodule(prefix[:-1]) if prefix else model
        names = [name for name in ("encoder", "decoder") if hasattr(inner, name)]
        stacks = tuple(self._stack(model, prefix, name) for name in names)
        roles = dict.fromkeys(
            (f"{prefix}shared", f"{prefix}encoder.embed_tokens", f"{prefix}decoder.embed_tokens"), "word"
        )
        return Anatomy(
            "t5", prefix, stacks, tables(model, roles), output_embedding_path(model), encoder_decoder=len(names) == 2
        )

    def _stack(self, model: PreTrainedModel, prefix: str, name: str) -> Stack:
        path = f"{prefix}{name}.block"
        count = len(model.get_submodule(path))  # type: ignore[arg-type]
        return Stack(name, path, tuple(self._block(model, name, path, index) for index in range(count)))

    def _block(self, model: PreTrainedModel, stack: str, stack_path: str, index: int) -> Block:
        path = f"{stack_path}.{index}"
        attentions = [self._attention(model, f"{path}.layer.0.SelfAttention", stack, cross=False)]
        decoder = stack == "decoder"
        if decoder:
            attentions.append(self._attention(model, f"{path}.layer.1.EncDecAttention", stack, cross=True))
        dense = f"{path}.layer.{2 if decoder else 1}.DenseReluDense"
        gated = hasattr(model.get_submodule(dense), "wi_0")
        inputs = (f"{dense}.wi_0", f"{dense}.wi_1") if gated else (f"{dense}.wi",)
        ffn = FeedForward(dense, inputs, f"{dense}.wo", rows_of(model, inputs[-1]))
        why = "it holds the relative position table that all blocks of its stack use" if index == 0 else None
        return Block(path, index, tuple(attentions), (ffn,), pinned=why)

    def _attention(self, model: PreTrainedModel, path: str, stack: str, *, cross: bool) -> Attention:
        module = model.get_submodule(path)
        table = f"{path}.relative_attention_bias"
        return separate_attention(
            model,
            path,
            _PROJECTIONS,
            f"{path}.o",
            int(module.key_value_proj_dim),  # type: ignore[arg-type]
            causal=stack == "decoder" and not cross,
            cross=cross,
            attributes={"n_heads": "heads", "inner_dim": "inner"},
            head_tables=(table,) if hasattr(module, "relative_attention_bias") else (),
            group=f"{stack} {'cross' if cross else 'self'}-attention heads",
        )

    def sync_config(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        config = model.config
        for stack in anatomy.stacks:
            setattr(config, "num_layers" if stack.name == "encoder" else "num_decoder_layers", len(stack.blocks))
            # Each stack keeps a copy of the config, with its own layer count under one name.
            inner = model.get_submodule(stack.path.rpartition(".")[0]).config
            inner.num_layers = len(stack.blocks)  # type: ignore[union-attr]
        width = uniform([ffn.width for ffn in anatomy.ffns])
        heads = uniform([attention.heads for attention in anatomy.attentions])
        configs = [config, *(model.get_submodule(stack.path.rpartition(".")[0]).config for stack in anatomy.stacks)]
        for each in configs:
            if width is not None:
                each.d_ff = width  # type: ignore[union-attr]
            if heads is not None:
                each.num_heads = heads  # type: ignore[union-attr]
