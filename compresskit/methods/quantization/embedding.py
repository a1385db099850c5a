"""``quantization.embedding``: lookup tables in 8 or 4 bits, and the tied head with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from compresskit.core import surgery
from compresskit.core.compressor import Compressor, Gain
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import view
from compresskit.methods.quantization._shared import tied_to, weight_bytes
from compresskit.nn.embedding import QuantizedEmbedding, QuantizedHead
from compresskit.registry import register


@register
class Embedding(Compressor):
    """Embedding tables in 8 or 4 bits, a scale for each row or group; a head tied to a table shares its codes.

    In small encoders the table is half of the file: compressing the blocks alone can't make it small.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "embedding"
    sites: ClassVar[frozenset[str]] = frozenset({"embedding"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    leaves: ClassVar[tuple[str, ...] | None] = ()
    paper: ClassVar[str] = "Shen et al., Q-BERT (group-wise), 2020 (arXiv 1909.05840); scales by least squares"

    bits: Literal[4, 8] = Field(8, description="8: symmetric; 4: packed, with zero points and float16 scales")
    group: int | None = Field(None, ge=2, description="columns that share a scale; none: the whole row")

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """What codes, scales and zero points take less than the table."""
        saved = 0
        for site in sites:
            plain = view(model, site.path)
            rows, columns = plain.weight.shape
            groups = 1 if self.group is None else columns // self.group
            row = columns + 4 * groups if self.bits == 8 else (columns + 1) // 2 + 2 * groups + (groups + 1) // 2
            saved += weight_bytes(plain) - rows * row
        return saved

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        columns = view(model, site.path).in_features
        if self.group is not None and columns % self.group:
            return f"its {columns} columns don't divide into groups of {self.group}"
        for path in tied_to(model, site):
            if type(model.get_submodule(path)) is not nn.Linear:
                return (
                    f"it is tied to {path}, a {type(model.get_submodule(path)).__name__}, which can't share its codes"
                )
        return None

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        for number, site in enumerate(sites):
            table = cast(nn.Embedding, model.get_submodule(site.path))
            heads = tied_to(model, site)
            before = table.weight.detach().float()
            layer = QuantizedEmbedding.from_table(table, self.bits, self.group)
            error = (layer.weight - before).norm() / before.norm().clamp(min=1e-12)
            context.details[site.path] = {
                "relative_error": float(error),
                "bits_per_weight": 8 * layer.stored_bytes() / before.numel(),
                "shared_with": heads,
            }
            surgery.replace(model, site.path, layer, untie=True)
            for head in heads:
                _share_with_head(model, site.path, head, layer)
            context.progress((number + 1) / len(sites), site.path)


def _share_with_head(model: PreTrainedModel, table_path: str, head_path: str, layer: QuantizedEmbedding) -> None:
    """Replace the tied output head by one that multiplies by the table's own codes."""
    head = cast(nn.Linear, model.get_submodule(head_path))
    shared = QuantizedHead(layer.rows, layer.columns, layer.bits, layer.group, head.bias is not None)
    if head.bias is not None:
        # The very parameter: BERT's head has its bias tied to `predictions.bias`.
        shared.bias = head.bias
    shared.to(torch.device(head.weight.device))
    surgery.replace(model, head_path, shared, untie=True)
    for name, parameter in layer.named_parameters():
        if parameter is not None:
            surgery.share_parameters(model, f"{table_path}.{name}", f"{head_path}.{name}")
