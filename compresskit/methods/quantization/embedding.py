"""``quantization.embedding``: lookup tables in 2 to 8 bits, and the tied head with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from compresskit.core import surgery
from compresskit.core.compressor import Compressor, Gain
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import view
from compresskit.methods.quantization._shared import quantization_detail, users_of_weight, weight_bytes
from compresskit.nn.embedding import QuantizedEmbedding, QuantizedHead
from compresskit.numerics.packing import packed_bytes
from compresskit.registry import register


@register
class Embedding(Compressor):
    """Embedding tables in 2 to 8 bits, a scale for each row or group; a head tied to a table shares its codes.

    In small encoders the table is half of the file: compressing the blocks alone can't make it small. Tables of words,
    positions and token types are taken; a relative position table, a few hundred numbers, is not.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "embedding"
    sites: ClassVar[frozenset[str]] = frozenset({"embedding"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    leaves: ClassVar[tuple[str, ...] | None] = ()
    paper: ClassVar[str] = "Shen et al., Q-BERT (group-wise), 2020 (arXiv 1909.05840); scales by least squares"

    bits: Literal[2, 3, 4, 5, 6, 7, 8] = Field(
        8, description="8: symmetric; less: packed without gaps, with zero points and float16 scales"
    )
    group: int | None = Field(None, ge=2, description="columns that share a scale; none: the whole row")

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """What codes, scales and zero points take less than the table."""
        saved = 0
        for site in sites:
            plain = view(model, site.path)
            saved += weight_bytes(plain) - self._stored(plain.out_features, plain.in_features)
        return saved

    def _stored(self, rows: int, columns: int) -> int:
        """Bytes of a (V, D) table: int8 codes and float32 scales, or packed codes, float16 scales, zero points."""
        groups = 1 if self.group is None else columns // self.group
        if self.bits == 8:
            return rows * (columns + 4 * groups)
        return rows * (packed_bytes(columns, self.bits) + 2 * groups + packed_bytes(groups, self.bits))

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        plain = view(model, site.path)
        table = cast(nn.Embedding, plain.module)
        rows, columns = plain.weight.shape
        if self.group is not None and columns % self.group:
            return f"its {columns} columns don't divide into groups of {self.group}"
        if table.max_norm is not None:
            return "it rescales its rows as they are looked up, which codes can't do"
        if self._stored(rows, columns) >= weight_bytes(plain):
            return f"codes and scales would take more than its {columns} columns do"
        for path in users_of_weight(model, plain):
            kind = type(model.get_submodule(path))
            if kind not in (nn.Embedding, nn.Linear):
                return f"it is tied to {path}, a {kind.__name__}, which can't share its codes"
        return None

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        for number, site in enumerate(sites):
            plain = view(model, site.path)
            layer = QuantizedEmbedding.from_table(cast(nn.Embedding, plain.module), self.bits, self.group)
            tied = users_of_weight(model, plain)
            detail = quantization_detail(plain.weight, layer.weight, self._stored(*plain.weight.shape))
            context.details[site.path] = {**detail, "shared_with": tied}
            others = {path: _sharer(layer, model.get_submodule(path)) for path in tied}
            surgery.replace_tied(model, {site.path: layer, **others})
            context.progress((number + 1) / len(sites), site.path)


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
