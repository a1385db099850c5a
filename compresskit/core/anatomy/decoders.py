"""Decoders: GPT-2, and Llama with its likes (Mistral, Qwen2, Qwen3)."""

from __future__ import annotations

from typing import ClassVar

from transformers import PreTrainedModel

from compresskit.core.anatomy.family import (
    Family,
    base_prefix,
    output_embedding_path,
    register_family,
    rows_of,
    separate_attention,
    tables,
    uniform,
)
from compresskit.core.anatomy.parts import Anatomy, Attention, Block, FeedForward, Rows, Stack


@register_family
class Gpt2(Family):
    """Blocks at ``h``; queries, keys and values are one ``Conv1D``, (I, O)."""

    model_types = ("gpt2",)

    def read(self, model: PreTrainedModel) -> Anatomy:
        prefix = base_prefix(model)
        stack = f"{prefix}h"
        count = len(model.get_submodule(stack))  # type: ignore[arg-type]
        blocks = tuple(self._block(model, f"{stack}.{index}", index) for index in range(count))
        embeddings = tables(model, {f"{prefix}wte": "word", f"{prefix}wpe": "position"})
        return Anatomy("gpt2", prefix, (Stack("decoder", stack, blocks),), embeddings, output_embedding_path(model))

    def _block(self, model: PreTrainedModel, path: str, index: int) -> Block:
        attentions = [self._attention(model, f"{path}.attn")]
        if hasattr(model.get_submodule(path), "crossattention"):
            attentions.append(self._cross(model, f"{path}.crossattention"))
        inner = f"{path}.mlp.c_fc"
        ffn = FeedForward(f"{path}.mlp", (inner,), f"{path}.mlp.c_proj", rows_of(model, inner))
        return Block(path, index, tuple(attentions), (ffn,))

    def _attention(self, model: PreTrainedModel, path: str) -> Attention:
        module = model.get_submodule(path)
        head_dim, inner = int(module.head_dim), int(module.split_size)  # type: ignore[arg-type]
        fused = f"{path}.c_attn"
        query, key, value = (Rows(fused, part * inner, (part + 1) * inner) for part in range(3))
        heads = inner // head_dim
        return Attention(
            path, query, key, value, f"{path}.c_proj", heads, heads, head_dim, causal=True,
            attributes={"num_heads": "heads", "split_size": "inner"},
        )  # fmt: skip

    def _cross(self, model: PreTrainedModel, path: str) -> Attention:
        module = model.get_submodule(path)
        head_dim, inner = int(module.head_dim), int(module.split_size)  # type: ignore[arg-type]
        heads = inner // head_dim
        return Attention(
            path,
            Rows(f"{path}.q_attn", 0, inner),
            Rows(f"{path}.c_attn", 0, inner),
            Rows(f"{path}.c_attn", inner, 2 * inner),
            f"{path}.c_proj",
            heads,
            heads,
            head_dim,
            cross=True,
            attributes={"num_heads": "heads", "split_size": "inner"},
        )

    def sync_config(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        model.config.n_layer = len(anatomy.blocks)
        width = uniform([ffn.width for ffn in anatomy.ffns])
        if width is not None and (width != 4 * model.config.n_embd or model.config.n_inner is not None):
            model.config.n_inner = width


@register_family
class Llama(Family):
    """Blocks at ``layers``; grouped key-value heads; a gated feed-forward network."""

    model_types: ClassVar[tuple[str, ...]] = ("llama", "mistral", "qwen2", "qwen3")

    def read(self, model: PreTrainedModel) -> Anatomy:
        prefix = base_prefix(model)
        stack = f"{prefix}layers"
        count = len(model.get_submodule(stack))  # type: ignore[arg-type]
        blocks = tuple(self._block(model, f"{stack}.{index}", index) for index in range(count))
        return Anatomy(
            model.config.model_type,
            prefix,
            (Stack("decoder", stack, blocks),),
            tables(model, {f"{prefix}embed_tokens": "word"}),
            output_embedding_path(model),
        )

    def _block(self, model: PreTrainedModel, path: str, index: int) -> Block:
        attention = self._attention(model, f"{path}.self_attn")
        mlp = f"{path}.mlp"
        ffn = FeedForward(
            mlp,
            (f"{mlp}.gate_proj", f"{mlp}.up_proj"),
            f"{mlp}.down_proj",
            rows_of(model, f"{mlp}.up_proj"),
            "intermediate_size",
        )
        return Block(path, index, (attention,), (ffn,))

    def _attention(self, model: PreTrainedModel, path: str) -> Attention:
        return separate_attention(
            model,
            path,
            ("q_proj", "k_proj", "v_proj"),
            f"{path}.o_proj",
            int(model.get_submodule(path).head_dim),  # type: ignore[arg-type]
            causal=True,
            attributes={"num_key_value_groups": "groups"},
        )

    def sync_config(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        config = model.config
        config.num_hidden_layers = len(anatomy.blocks)
        width = uniform([ffn.width for ffn in anatomy.ffns])
        if width is not None:
            config.intermediate_size = width
        heads = uniform([attention.heads for attention in anatomy.attentions])
        kv_heads = uniform([attention.kv_heads for attention in anatomy.attentions])
        head_dim = uniform([attention.head_dim for attention in anatomy.attentions])
        changed = (heads, kv_heads) != (config.num_attention_heads, config.num_key_value_heads)
        if heads is not None and kv_heads is not None and changed:
            config.head_dim = head_dim
            config.num_attention_heads, config.num_key_value_heads = heads, kv_heads
