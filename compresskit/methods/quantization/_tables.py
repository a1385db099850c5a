"""Lookup tables in few bits, and the heads that share their codes."""

from __future__ import annotations

from typing import cast

from torch import nn
from transformers import PreTrainedModel

from compresskit.core import surgery
from compresskit.core.context import Context
from compresskit.core.weights import WeightView, view
from compresskit.methods.quantization._packed import finite_weight
from compresskit.methods.quantization._shared import quantization_detail, users_of_weight, weight_bytes
from compresskit.nn.embedding import Bits, QuantizedEmbedding, QuantizedHead
from compresskit.numerics.packing import packed_bytes


def table_bytes(plain: WeightView, bits: int, group: int | None) -> int:
    """Bytes of the (V, D) table: int8 codes and float32 scales, or packed codes, float16 scales and zero points."""
    rows, columns = plain.weight.shape
    groups = 1 if group is None else columns // group
    if bits == 8:
        return rows * (columns + 4 * groups)
    return rows * (packed_bytes(columns, bits) + 2 * groups + packed_bytes(groups, bits))


def refuse_table(model: PreTrainedModel, path: str, bits: int, group: int | None) -> str | None:
    """Why the table at ``path`` can't become codes, or None."""
    plain = view(model, path)
    table = cast(nn.Embedding, plain.module)
    columns = plain.in_features
    if group is not None and columns % group:
        return f"its {columns} columns don't divide into groups of {group}"
    if table.max_norm is not None:
        return "it rescales its rows as they are looked up, which codes can't do"
    if table_bytes(plain, bits, group) >= weight_bytes(plain):
        return f"codes and scales would take more than its {columns} columns do"
    for user in users_of_weight(model, plain):
        kind = type(model.get_submodule(user))
        if kind not in (nn.Embedding, nn.Linear):
            return f"it is tied to {user}, a {kind.__name__}, which can't share its codes"
    return None


def install_table(model: PreTrainedModel, path: str, bits: Bits, group: int | None, context: Context) -> None:
    """Put codes in place of the table at ``path`` and of whatever is tied to it, and its row into the ledger.

    Raises:
        ModelError: CK-M054, if the table isn't finite.
    """
    plain = view(model, path)
    finite_weight(plain)
    layer = QuantizedEmbedding.from_table(cast(nn.Embedding, plain.module), bits, group)
    tied = users_of_weight(model, plain)
    stored = table_bytes(plain, bits, group)
    detail = quantization_detail(plain.weight, layer.rows_between, stored)
    context.details[path] = {"bits": bits, **detail, "shared_with": tied}
    others = {user: _sharer(layer, model.get_submodule(user)) for user in tied}
    surgery.replace_tied(model, {path: layer, **others})


def _sharer(layer: QuantizedEmbedding, module: nn.Module) -> nn.Module:
    """In place of a module that is tied to the table: a table or a head which will take the codes of ``layer``."""
    if isinstance(module, nn.Embedding):
        other: nn.Module = QuantizedEmbedding(**{**layer.arguments(), "padding_idx": module.padding_idx})
        return other.to(layer.codes.device, layer.dtype)
    bias = cast(nn.Linear, module).bias
    head = QuantizedHead(layer.rows, layer.columns, layer.bits, layer.group, bias is not None)
    head.to(layer.codes.device, layer.dtype)
    if bias is not None:
        # The very parameter: the bias of BERT's head is that of `predictions` too.
        head.bias = bias
    return head
