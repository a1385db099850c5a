"""``quantization.nf4``: 4-bit NormalFloat with scales quantized in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core.compressor import Compressor, Gain, Streams
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import WeightView, view
from compresskit.methods.quantization._packed import finite_weight, install_layer, refuse_packed_site
from compresskit.methods.quantization._shared import weight_bytes
from compresskit.nn.lookup import SCALE_BLOCK, LookupLinear
from compresskit.numerics.lookup import by_absmax, normal_float
from compresskit.numerics.packing import packed_bytes
from compresskit.registry import register

BITS = 4


@register
class Nf4(Compressor):
    """Weights as 16 quantiles of a normal distribution, a scale for each group, the scales in 8 bits.

    No data. The levels are those of QLoRA; the scales' own quantization is uniform. Needs no other library, reloads,
    and is a table lookup in ONNX.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "nf4"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    leaves: ClassVar[tuple[str, ...] | None] = ()
    streams: ClassVar[Streams | None] = "site"
    paper: ClassVar[str] = "Dettmers et al., QLoRA, NeurIPS 2023 (arXiv 2305.14314)"

    group: int = Field(64, ge=2, description="columns that share a scale; it must divide the columns of the matrix")
    double: bool = Field(True, description="scales in 8 bits with a step for 256 of them; false: float32")

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return refuse_packed_site(model, site, self.group)

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Exact."""
        return sum(self._saved(view(model, site.path)) for site in sites)

    def _saved(self, plain: WeightView) -> int:
        scales = plain.weight.numel() // self.group
        scale_bytes = scales + 8 * -(-scales // SCALE_BLOCK) if self.double else 4 * scales
        codes = plain.out_features * packed_bytes(plain.in_features, BITS)
        return weight_bytes(plain) - codes - scale_bytes - 4 * 2**BITS

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        for number, site in enumerate(sites):
            plain = view(model, site.path)
            weight = finite_weight(plain)
            found = by_absmax(weight, normal_float(BITS).to(weight.device), self.group)
            layer = LookupLinear.from_lookup(found, BITS, plain.bias, plain.weight.dtype, small_scales=self.double)
            install_layer(model, site.path, layer, context)
            context.progress((number + 1) / len(sites), site.path)
