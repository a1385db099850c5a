"""``quantization.int8``: int8 weights, activations quantized as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from compresskit.core import surgery
from compresskit.core.compressor import Compressor, Gain
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import WeightView, view
from compresskit.methods.quantization._shared import quantization_detail, refuse_integer_site, weight_bytes
from compresskit.nn.int8 import Int8Linear
from compresskit.registry import register

_SCALE_BYTES = 4


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
    paper: ClassVar[str] = "Zafrir et al., Q8BERT, 2019 (arXiv 1910.06188); dynamic activations as in ONNX Runtime"

    activations: Literal["token", "tensor"] = Field(
        "token", description="one activation scale a token, or one for the whole tensor: faster, depends on the batch"
    )

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """A weight becomes one byte, and each row gets a scale."""
        saved = 0
        for site in sites:
            plain = view(model, site.path)
            saved += weight_bytes(plain) - _stored(plain)
        return saved

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return refuse_integer_site(model, site)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        for number, site in enumerate(sites):
            plain = view(model, site.path)
            layer = Int8Linear.from_weight(plain.weight, plain.bias, self.activations)
            if isinstance(plain.module.bias, nn.Parameter):
                # The very parameter: the bias of BERT's head is that of `predictions` too.
                layer.bias = plain.module.bias
            context.details[site.path] = quantization_detail(plain.weight, layer.weight, _stored(plain))
            surgery.replace(model, site.path, layer)
            context.progress((number + 1) / len(sites), site.path)


def _stored(plain: WeightView) -> int:
    """Bytes of the codes and of a scale a row."""
    return plain.weight.numel() + _SCALE_BYTES * plain.out_features
