"""``quantization.int8``: int8 weights, activations quantized as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core import surgery
from compresskit.core.compressor import Compressor, Gain
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import view
from compresskit.methods.quantization._shared import tied_to, weight_bytes
from compresskit.nn.int8 import Int8Linear
from compresskit.registry import register


@register
class Int8(Compressor):
    """Int8 weights per output channel, activations in 8 bits as they come; integer products in torch and in ONNX.

    Linear layers and GPT-2's Conv1D in the blocks; a head or a pooler only when it is named.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "int8"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory", "latency"})
    leaves: ClassVar[tuple[str, ...] | None] = ()
    paper: ClassVar[str] = "Zafrir et al., Q8BERT, 2019 (arXiv 1910.06188); dynamic activations as in ONNX Runtime"

    activations: Literal["token", "tensor"] = Field(
        "token", description="one activation scale a token, or one for the whole tensor: faster, depends on the batch"
    )

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Four bytes of a float32 weight become one, and each row gets a scale."""
        saved = 0
        for site in sites:
            plain = view(model, site.path)
            saved += weight_bytes(plain) - plain.weight.numel() - 4 * plain.out_features
        return saved

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        tied = tied_to(model, site)
        if tied:
            return (
                f"its weight is tied to {', '.join(tied)} and would be stored twice;"
                " quantization.embedding quantizes the table and the head that shares it"
            )
        return None

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        for number, site in enumerate(sites):
            plain = view(model, site.path)
            layer = Int8Linear.from_weight(plain.weight, plain.bias, self.activations)
            error = (layer.weight - plain.weight.float()).norm() / plain.weight.float().norm().clamp(min=1e-12)
            context.details[site.path] = {
                "relative_error": float(error),
                "bits_per_weight": 8 * (layer.weight_codes.numel() + 4 * layer.out_features) / plain.weight.numel(),
            }
            surgery.replace(model, site.path, layer)
            context.progress((number + 1) / len(sites), site.path)
