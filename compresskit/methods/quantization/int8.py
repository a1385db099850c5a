"""``quantization.int8``: int8 weights, activations quantized as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core.compressor import Compressor, Gain, Streams
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import view
from compresskit.methods.quantization._int8 import install_int8, int8_bytes
from compresskit.methods.quantization._shared import refuse_integer_site, weight_bytes
from compresskit.registry import register


@register
class Int8(Compressor):
    """Int8 weights per output channel, activations in 8 bits as they come; integer products in torch and in ONNX.

    Linear layers and GPT-2's Conv1D in the blocks; a head or a pooler only when it is named. After decomposition.svd it
    takes the two factors.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "int8"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory", "latency"})
    leaves: ClassVar[tuple[str, ...] | None] = ()
    streams: ClassVar[Streams | None] = "site"
    paper: ClassVar[str] = "Zafrir et al., Q8BERT, 2019 (arXiv 1910.06188); dynamic activations as in ONNX Runtime"

    activations: Literal["token", "tensor"] = Field(
        "token", description="one activation scale a token, or one for the whole tensor: faster, depends on the batch"
    )

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """A weight becomes one byte, and each row gets a scale."""
        saved = 0
        for site in sites:
            plain = view(model, site.path)
            saved += weight_bytes(plain) - int8_bytes(plain)
        return saved

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return refuse_integer_site(model, site)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        for number, site in enumerate(sites):
            install_int8(model, site.path, self.activations, context)
            context.progress((number + 1) / len(sites), site.path)
