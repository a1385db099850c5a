"""Changes of whole models, as compression makes them and as users make them by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from compresskit.core import anatomy, surgery
from tests.checkpoint.toys import ToyInt8, ToyLowRank, ToyTable, put, replace_all
from tests.models import DECODERS

Edit = Callable[[PreTrainedModel], object]


def low_rank(model: PreTrainedModel) -> object:
    return replace_all(model, lambda matrix: ToyLowRank.of(matrix, 6))


def int8(model: PreTrainedModel) -> object:
    return replace_all(model, ToyInt8.of)


def int8_in_low_rank(model: PreTrainedModel) -> object:
    def both(matrix: nn.Module) -> nn.Module:
        layer = ToyLowRank.of(matrix, 6)
        layer.down, layer.up = ToyInt8.of(layer.down), ToyInt8.of(layer.up)
        return layer

    return replace_all(model, both, every=2)


def uneven_heads(model: PreTrainedModel) -> None:
    """Other head counts in every layer; in T5 the same in a whole stack, whose layers share their positions."""
    for attention in anatomy.of(model).attentions:
        group = attention.heads // attention.kv_heads
        left = attention.kv_heads - 1 if attention.group else 1 + _layer(attention.path) % attention.kv_heads
        surgery.keep_heads(model, attention, range(left * group))


def uneven_widths(model: PreTrainedModel) -> None:
    for number, ffn in enumerate(anatomy.of(model).ffns):
        surgery.keep_neurons(model, ffn, torch.arange(ffn.width - 8 * number - 3))


def _layer(path: str) -> int:
    return next(int(part) for part in path.split(".") if part.isdigit())


def stack_of(model: PreTrainedModel) -> str:
    """Path of the first list of blocks."""
    return next(stack.path for stack in anatomy.of(model).stacks if len(stack.blocks) > 1)


def shared_layers(model: PreTrainedModel) -> None:
    blocks = model.get_submodule(stack_of(model))
    mine = {name for name, _ in blocks[1].named_parameters()}
    for name, parameter in blocks[2].named_parameters():
        if name in mine:
            owner, _, last = name.rpartition(".")
            blocks[1].get_submodule(owner)._parameters[last] = parameter


def one_layer_twice(model: PreTrainedModel) -> None:
    blocks = model.get_submodule(stack_of(model))
    blocks[1] = blocks[2]


def dropped_by_hand(model: PreTrainedModel) -> None:
    """The middle block goes; the config isn't told."""
    path = stack_of(model)
    blocks = model.get_submodule(path)
    put(model, path, nn.ModuleList([blocks[0], blocks[2]]))


def dropped(model: PreTrainedModel) -> None:
    for stack in anatomy.of(model).stacks:
        surgery.keep_blocks(model, stack, [0, 2])


def untied(model: PreTrainedModel) -> None:
    """The head gets a copy of its own, with equal values."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())


def tables(model: PreTrainedModel) -> None:
    """Every word table, and the head, is compressed; what was shared stays shared."""
    head = model.get_output_embeddings()
    made: dict[int, nn.Module] = {}
    for path, module in list(model.named_modules()):
        word_table = type(module) is nn.Embedding and module.num_embeddings == model.config.vocab_size
        if not word_table and module is not head:
            continue
        layer = ToyInt8.of(module) if module is head else ToyTable.of(module)
        first = made.setdefault(id(module.weight), layer)
        layer.codes, layer.scale = first.codes, first.scale
        put(model, path, layer)


def window(model: PreTrainedModel) -> None:
    for attention in anatomy.of(model).attentions:
        if not attention.cross:
            surgery.set_attention(model, attention.path, {"kind": "window", "window": 3, "global_tokens": 1})


def epsilons(model: PreTrainedModel) -> None:
    """Plain attributes only."""
    for module in model.modules():
        for name in ("eps", "variance_epsilon"):
            if hasattr(module, name):
                setattr(module, name, 1e-3)


def half_precision(model: PreTrainedModel) -> None:
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.data = parameter.data.to(torch.bfloat16)
    replace_all(model, ToyInt8.of, every=2)
    replace_all(model, lambda matrix: ToyLowRank.of(matrix, 4), every=2)


ALL: dict[str, Edit] = {
    edit.__name__: edit
    for edit in (
        int8,
        low_rank,
        int8_in_low_rank,
        uneven_heads,
        uneven_widths,
        shared_layers,
        one_layer_twice,
        dropped,
        dropped_by_hand,
        untied,
        tables,
        window,
        epsilons,
        half_precision,
    )
}

ONE_BLOCK = {"shared_layers", "one_layer_twice", "dropped", "dropped_by_hand"}


def applies(edit: str, family: str) -> bool:
    """ALBERT runs one block many times; one module object at two places breaks a decoder's cache."""
    return not ((family == "albert" and edit in ONE_BLOCK) or (family in DECODERS and edit == "one_layer_twice"))
