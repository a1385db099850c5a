"""``quantization.fp8``: weights as 8-bit floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core.compressor import Compressor, Gain, Streams
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import WeightView, view
from compresskit.methods.quantization._packed import finite_weight, install_layer
from compresskit.methods.quantization._shared import refuse_integer_site, weight_bytes
from compresskit.nn.fp8 import Float8Linear
from compresskit.registry import register


@register
class Fp8(Compressor):
    """Weights as 8-bit floats (E4M3), a scale for each row or matrix; 8-bit float products on recent CUDA devices.

    On a CPU, and in ONNX files, weights are dequantized and products are float: smaller, and no faster. On a CUDA
    device of compute capability 8.9 and up inputs are rounded to 8-bit floats as well, unless ``inputs`` is float.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "fp8"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    leaves: ClassVar[tuple[str, ...] | None] = ()
    streams: ClassVar[Streams | None] = "site"
    paper: ClassVar[str] = "Micikevicius et al., FP8 Formats for Deep Learning, 2022 (arXiv 2209.05433)"

    per: Literal["channel", "tensor"] = Field("channel", description="what shares a scale: a row, or the whole matrix")
    inputs: Literal["float8", "float"] = Field(
        "float8", description="what inputs are multiplied as on CUDA devices with products of 8-bit floats"
    )

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return refuse_integer_site(model, site)

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Exact."""
        return sum(self._saved(view(model, site.path)) for site in sites)

    def _saved(self, plain: WeightView) -> int:
        scales = 1 if self.per == "tensor" else plain.out_features
        return weight_bytes(plain) - plain.weight.numel() - 4 * scales

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        for number, site in enumerate(sites):
            plain = view(model, site.path)
            whole = self.per == "tensor"
            weight = finite_weight(plain)
            layer = Float8Linear.from_weight(weight, plain.bias, whole=whole, inputs=self.inputs).to(plain.weight.dtype)
            install_layer(model, site.path, layer, context)
            context.progress((number + 1) / len(sites), site.path)
