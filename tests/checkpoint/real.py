"""The project's own layers in whole models, as the methods put them there."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GPT2LMHeadModel

from compresskit.core import anatomy, surgery
from compresskit.core.weights import view
from compresskit.nn.embedding import QuantizedEmbedding, QuantizedHead
from compresskit.nn.int8 import Int8Linear
from compresskit.nn.low_rank import LowRankLinear


def low_rank(weight: torch.Tensor, bias: torch.Tensor | None, rank: int) -> LowRankLinear:
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return LowRankLinear.from_factors(left[:, :rank] * values[:rank], right[:rank], bias)


def compress_all(model: GPT2LMHeadModel) -> None:
    """Heads and neurons removed, layers shared, low rank with int8 inside, int8, a 4-bit table and head, a window."""
    body = anatomy.of(model)
    for attention in body.attentions:
        surgery.keep_heads(model, attention, [0, 2, 3])
        surgery.set_attention(model, attention.path, {"kind": "window", "window": 4, "global_tokens": 1})
    for ffn in body.ffns:
        surgery.keep_neurons(model, ffn, torch.arange(100))
    surgery.sync_config(model)
    surgery.share_module(model, body.blocks[1].path, body.blocks[2].path)
    for path in (ffn.output for ffn in body.ffns[:2]):  # the third follows the second, which it shares
        matrix = view(model, path)
        surgery.replace(model, path, low_rank(matrix.weight, matrix.bias, 12))
    first = f"{body.ffns[0].output}.up"
    plain = model.get_submodule(first)
    assert isinstance(plain, nn.Linear)
    surgery.replace(model, first, Int8Linear.from_weight(plain.weight.detach(), plain.bias.detach()))
    query = view(model, body.attentions[0].query.path)
    surgery.replace(model, query.path, Int8Linear.from_weight(query.weight, query.bias, "tensor"))
    table = QuantizedEmbedding.from_table(model.transformer.wte, 4, 32)
    head = QuantizedHead(table.rows, table.columns, 4, 32)
    surgery.replace_tied(model, {"transformer.wte": table, "lm_head": head})
