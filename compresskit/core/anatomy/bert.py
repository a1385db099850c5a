"""BERT and its likes (RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA), DistilBERT, ALBERT."""

from __future__ import annotations

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
from compresskit.core.anatomy.parts import Anatomy, Attention, Block, FeedForward, Stack


@register_family
class Bert(Family):
    """Blocks at ``encoder.layer``; attention in ``attention.self``; separate query, key, value."""

    model_types = ("bert", "roberta", "xlm-roberta", "camembert", "electra")

    def read(self, model: PreTrainedModel) -> Anatomy:
        prefix = base_prefix(model)
        stack = f"{prefix}encoder.layer"
        count = len(model.get_submodule(stack))  # type: ignore[arg-type]
        blocks = tuple(self._block(model, f"{stack}.{index}", index) for index in range(count))
        embeddings = tables(
            model,
            {
                f"{prefix}embeddings.word_embeddings": "word",
                f"{prefix}embeddings.position_embeddings": "position",
                f"{prefix}embeddings.token_type_embeddings": "token_type",
            },
        )
        return Anatomy(
            model.config.model_type,
            prefix,
            (Stack("encoder", stack, blocks),),
            embeddings,
            output_embedding_path(model),
        )

    def _block(self, model: PreTrainedModel, path: str, index: int) -> Block:
        attentions = [self._attention(model, f"{path}.attention", cross=False)]
        if hasattr(model.get_submodule(path), "crossattention"):
            attentions.append(self._attention(model, f"{path}.crossattention", cross=True))
        inner = f"{path}.intermediate.dense"
        ffn = FeedForward(f"{path}.intermediate", (inner,), f"{path}.output.dense", rows_of(model, inner))
        return Block(path, index, tuple(attentions), (ffn,))

    def _attention(self, model: PreTrainedModel, path: str, *, cross: bool) -> Attention:
        core = f"{path}.self"
        module = model.get_submodule(core)
        return separate_attention(
            model,
            core,
            ("query", "key", "value"),
            f"{path}.output.dense",
            int(module.attention_head_size),  # type: ignore[arg-type]
            causal=bool(getattr(module, "is_causal", False)) and not cross,
            cross=cross,
            attributes={"num_attention_heads": "heads", "all_head_size": "inner"},
        )

    def sync_config(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        model.config.num_hidden_layers = len(anatomy.blocks)
        width = uniform([ffn.width for ffn in anatomy.ffns])
        if width is not None:
            model.config.intermediate_size = width


@register_family
class DistilBert(Family):
    """Blocks at ``transformer.layer``; attention in ``attention`` with ``q_lin`` and so on."""

    model_types = ("distilbert",)

    def read(self, model: PreTrainedModel) -> Anatomy:
        prefix = base_prefix(model)
        stack = f"{prefix}transformer.layer"
        count = len(model.get_submodule(stack))  # type: ignore[arg-type]
        blocks = tuple(self._block(model, f"{stack}.{index}", index) for index in range(count))
        embeddings = tables(
            model,
            {
                f"{prefix}embeddings.word_embeddings": "word",
                f"{prefix}embeddings.position_embeddings": "position",
            },
        )
        return Anatomy(
            "distilbert", prefix, (Stack("encoder", stack, blocks),), embeddings, output_embedding_path(model)
        )

    def _block(self, model: PreTrainedModel, path: str, index: int) -> Block:
        core = f"{path}.attention"
        attention = separate_attention(
            model,
            core,
            ("q_lin", "k_lin", "v_lin"),
            f"{core}.out_lin",
            int(model.get_submodule(core).attention_head_size),  # type: ignore[arg-type]
            attributes={"n_heads": "heads"},
        )
        inner = f"{path}.ffn.lin1"
        ffn = FeedForward(f"{path}.ffn", (inner,), f"{path}.ffn.lin2", rows_of(model, inner))
        return Block(path, index, (attention,), (ffn,))

    def sync_config(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        model.config.n_layers = len(anatomy.blocks)
        model.get_submodule(f"{anatomy.prefix}transformer").n_layers = len(anatomy.blocks)  # type: ignore[assignment]
        width = uniform([ffn.width for ffn in anatomy.ffns])
        if width is not None:
            model.config.hidden_dim = width


@register_family
class Albert(Family):
    """One group of blocks run many times: ``encoder.albert_layer_groups.G.albert_layers.N``."""

    model_types = ("albert",)

    def read(self, model: PreTrainedModel) -> Anatomy:
        prefix = base_prefix(model)
        config = model.config
        stacks = []
        for group in range(config.num_hidden_groups):
            path = f"{prefix}encoder.albert_layer_groups.{group}.albert_layers"
            blocks = tuple(self._block(model, f"{path}.{index}", index) for index in range(config.inner_group_num))
            repeats = config.num_hidden_layers // config.num_hidden_groups
            stacks.append(Stack("encoder" if group == 0 else f"encoder group {group}", path, blocks, repeats))
        embeddings = tables(
            model,
            {
                f"{prefix}embeddings.word_embeddings": "word",
                f"{prefix}embeddings.position_embeddings": "position",
                f"{prefix}embeddings.token_type_embeddings": "token_type",
            },
        )
        return Anatomy("albert", prefix, tuple(stacks), embeddings, output_embedding_path(model))

    def _block(self, model: PreTrainedModel, path: str, index: int) -> Block:
        core = f"{path}.attention"
        attention = separate_attention(
            model,
            core,
            ("query", "key", "value"),
            f"{core}.dense",
            int(model.get_submodule(core).attention_head_size),  # type: ignore[arg-type]
            attributes={"num_attention_heads": "heads", "all_head_size": "inner"},
        )
        inner = f"{path}.ffn"
        ffn = FeedForward(inner, (inner,), f"{path}.ffn_output", rows_of(model, inner))
        why = "ALBERT runs one set of layers several times: there is no single layer to remove"
        return Block(path, index, (attention,), (ffn,), pinned=why)

    def sync_config(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        width = uniform([ffn.width for ffn in anatomy.ffns])
        if width is not None:
            model.config.intermediate_size = width
