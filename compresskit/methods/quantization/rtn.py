"""``quantization.rtn``: weights rounded to the nearest code of 2 to 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core.compressor import Gain, Streams
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import WeightView, view
from compresskit.methods.quantization._packed import SymmetricOrNot, finite_weight, install, stored_bytes
from compresskit.methods.quantization._shared import weight_bytes
from compresskit.numerics.rtn import quantize, scale_type
from compresskit.registry import register


@register
class Rtn(SymmetricOrNot):
    """Weights rounded to the nearest of 2 to 8 bits, scales per group, row or matrix that lose least; no data.

    The weights are packed without gaps and dequantized as they are used: activations stay float. Tables and the heads
    tied to them are done by quantization.embedding.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "rtn"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    leaves: ClassVar[tuple[str, ...] | None] = ()
    streams: ClassVar[Streams | None] = "site"
    paper: ClassVar[str] = "Jacob et al. 2018 (arXiv 1712.05877); groups: Shen et al. 2020 (arXiv 1909.05840)"

    per: Literal["group", "channel", "tensor"] = Field(  # type: ignore[assignment]
        "group", description="what shares a scale: a group of a row, a row, or the whole matrix"
    )
    search: bool = Field(True, description="choose scales by squared error; false: the full range")

    def _saved(self, plain: WeightView) -> int:
        stored = stored_bytes(plain, self.bits, self.columns, self.zeros(), self.per == "tensor")
        return weight_bytes(plain) - stored

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.nothing_asked():
            return
        for number, site in enumerate(sites):
            weight = finite_weight(view(model, site.path))
            codes = quantize(
                weight,
                self.bits,
                self.columns,
                symmetric=self.symmetric,
                whole=self.per == "tensor",
                search=self.search,
                scale_dtype=scale_type(weight, self.bits),
            )
            install(model, site.path, codes, context)
            context.progress((number + 1) / len(sites), site.path)
