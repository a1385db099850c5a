"""``quantization.codebook``: weights as entries of a codebook, tables in product codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from compresskit.core import surgery
from compresskit.core.compressor import Gain
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import WeightView, view
from compresskit.methods.quantization._packed import WHOLE_BITS, Bits, finite_weight, install_layer, refuse_packed_site
from compresskit.methods.quantization._self_taught import SelfTaught
from compresskit.methods.quantization._shared import quantization_detail, users_of_weight, weight_bytes
from compresskit.nn.lookup import LookupLinear
from compresskit.nn.product import ProductEmbedding
from compresskit.numerics.lookup import codebook, product_codes
from compresskit.numerics.packing import packed_bytes
from compresskit.registry import register

_ENTRIES = 256
_ENTRY_BITS = 8


@register
class Codebook(SelfTaught):
    """Weights as entries of a k-means codebook for each matrix; embedding tables in product codes, bytes for a row.

    For a table, each ``width`` columns of a row are one of 256 short vectors: width 4 is 2 bits a weight. A lookup
    gathers codes and vectors. Tables that a head is tied to are left to quantization.embedding.

    With ``train`` all codebooks are trained together towards what the model gave before; codes, and all else, stay.

    ```yaml
    - quantization.codebook: {targets: [embeddings.word_embeddings], width: 8, train: 300}
    ```
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "codebook"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix", "embedding"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    leaves: ClassVar[tuple[str, ...] | None] = ()
    paper: ClassVar[str] = "Han et al., Deep Compression, 2016 (arXiv 1510.00149); Jégou et al., TPAMI 33-1, 2011"

    bits: Bits = Field(4, description="bits of a weight in a matrix, 2 to 8; 16 and more leave all as it is")
    slices: int = Field(1, ge=1, description="equal slices of a matrix's rows with a codebook each")
    width: int = Field(4, ge=1, description="columns of a table that one code stands for")
    steps: int = Field(25, ge=0, le=1000, description="at most so many steps of k-means")
    lr: float = Field(1e-3, gt=0, le=1, description="of training: peak learning rate of AdamW")

    def nothing_asked(self) -> str | None:
        """16 bits and more."""
        return f"bits {self.bits} leaves every weight as it is" if self.bits >= WHOLE_BITS else None

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        if self.nothing_asked():
            return None
        if headless := self.refuse_training(model):
            return headless
        plain = view(model, site.path)
        if site.kind == "embedding":
            return self._refuse_table(model, plain)
        if plain.out_features % self.slices:
            return f"its {plain.out_features} rows don't divide into {self.slices} slices"
        if self._stored(plain) >= weight_bytes(plain):
            return "codes and codebook would take more than the matrix does"
        return refuse_packed_site(model, site, None)

    def _refuse_table(self, model: PreTrainedModel, plain: WeightView) -> str | None:
        if plain.in_features % self.width:
            return f"its {plain.in_features} columns don't divide into parts of {self.width}"
        if cast(nn.Embedding, plain.module).max_norm is not None:
            return "it rescales its rows as they are looked up, which codes can't do"
        if self._stored(plain) >= weight_bytes(plain):
            return "codes and codebooks would take more than the table does"
        tied = users_of_weight(model, plain)
        if tied:
            return f"it is tied to {', '.join(tied)}, which can't read product codes; use quantization.embedding"
        return None

    def _stored(self, plain: WeightView) -> int:
        rows, columns = plain.weight.shape
        if plain.table:
            return rows * (columns // self.width) + 2 * min(rows, _ENTRIES) * columns
        return rows * packed_bytes(columns, self.bits) + 4 * self.slices * 2**self.bits

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Exact."""
        if self.nothing_asked():
            return 0
        views = [view(model, site.path) for site in sites]
        return sum(weight_bytes(plain) - self._stored(plain) for plain in views)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.nothing_asked():
            return
        if not self.train:
            self._code(model, sites, context)
            return
        before = {site.path: view(model, site.path).weight.detach() for site in sites}
        with _flags_kept(model):
            self.teach(model, context, lambda: self._begin(model, sites, context), freeze_embeddings=False)
        for path, weight in before.items():
            layer: Any = model.get_submodule(path)
            _codebook_of(layer).requires_grad_(False)
            detail = quantization_detail(weight, layer.weight, 0)
            context.details[path] |= {"relative_error": detail["relative_error"]}

    def _begin(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        """Put the codes in place, with nothing to train but the codebooks."""
        self._code(model, sites, context)
        model.requires_grad_(False)
        for site in sites:
            _codebook_of(model.get_submodule(site.path)).requires_grad_(True)

    def _code(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        for number, site in enumerate(sites):
            plain = view(model, site.path)
            if plain.table:
                self._table(model, plain, context)
            else:
                found = codebook(finite_weight(plain), self.bits, self.slices, self.steps)
                layer = LookupLinear.from_lookup(found, self.bits, plain.bias, plain.weight.dtype)
                install_layer(model, site.path, layer, context)
            context.progress((number + 1) / len(sites), site.path)

    def _table(self, model: PreTrainedModel, plain: WeightView, context: Context) -> None:
        weight = finite_weight(plain)
        codes, books = product_codes(
            weight, plain.in_features // self.width, _ENTRY_BITS, context.generator(), self.steps
        )
        books = books[:, : min(weight.shape[0], _ENTRIES)]
        padding = cast(nn.Embedding, plain.module).padding_idx
        layer = ProductEmbedding.from_codes(codes, books, padding, plain.weight.dtype)
        context.details[plain.path] = quantization_detail(plain.weight, layer.weight, layer.stored_bytes())
        surgery.replace(model, plain.path, layer)


def _codebook_of(layer: nn.Module) -> nn.Parameter:
    return cast(nn.Parameter, layer.books if isinstance(layer, ProductEmbedding) else layer.levels)


@contextmanager
def _flags_kept(model: PreTrainedModel) -> Iterator[None]:
    """Which parameters can be trained is afterwards as before, where they are still there."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
