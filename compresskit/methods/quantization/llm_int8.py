"""``quantization.llm_int8``: bitsandbytes' int8 products with outlier columns in floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core import surgery
from compresskit.core.compressor import Compressor, Gain
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import WeightView, view
from compresskit.methods.quantization._bitsandbytes import PACKAGE, library, refuse_without_package
from compresskit.methods.quantization._int8 import int8_bytes
from compresskit.methods.quantization._packed import finite_weight
from compresskit.methods.quantization._shared import quantization_detail, refuse_integer_site, weight_bytes
from compresskit.nn.bitsandbytes_layers import MixedInt8Linear
from compresskit.registry import register


@register
class LlmInt8(Compressor):
    """Int8 weights by rows and int8 inputs by tokens; input columns with an outlier are multiplied as floats.

    Needs the package bitsandbytes, on a CPU or a CUDA device. The checkpoint loads, computes and exports without it.
    The ONNX file (profile fast) is that of quantization.int8, which holds no outlier back and fails its check where
    that matters; the profile portable multiplies floats.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "llm_int8"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    leaves: ClassVar[tuple[str, ...] | None] = ()
    package: ClassVar[str] = PACKAGE
    paper: ClassVar[str] = "Dettmers et al., LLM.int8(), NeurIPS 2022 (arXiv 2208.07339)"

    threshold: float = Field(6.0, ge=0, description="magnitude from which an input is an outlier; 0: none is")

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return refuse_without_package(site) or refuse_integer_site(model, site)

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """A weight becomes one byte, and each row gets a scale."""
        return sum(self._saved(view(model, site.path)) for site in sites)

    def _saved(self, plain: WeightView) -> int:
        return weight_bytes(plain) - int8_bytes(plain)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        functional = library().functional
        for number, site in enumerate(sites):
            plain = view(model, site.path)
            weight = finite_weight(plain)
            layer = self._layer(plain, *_codes(weight, functional))
            if plain.bias_parameter is not None:
                # The very parameter: the bias of BERT's head is that of `predictions` too.
                layer.bias = plain.bias_parameter
            context.details[site.path] = quantization_detail(plain.weight, layer.weight, int8_bytes(plain))
            surgery.replace(model, site.path, layer)
            context.progress((number + 1) / len(sites), site.path)

    def _layer(self, plain: WeightView, codes: torch.Tensor, scale: torch.Tensor) -> MixedInt8Linear:
        layer = MixedInt8Linear(plain.in_features, plain.out_features, plain.bias is not None, self.threshold)
        layer = layer.to(plain.weight.device, plain.weight.dtype)
        layer.weight_codes.data, layer.weight_scale.data = codes, scale
        if layer.bias is not None and plain.bias is not None:
            layer.bias.data = plain.bias.detach().clone()
        return layer


def _codes(weight: torch.Tensor, functional: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Int8 codes (O, I) and scales (O,) float32, as bitsandbytes has them; a row of zeros gets scale 1.

    It reads float16: a matrix beyond that is divided by its rows' largest magnitudes before.
    """
    half, divisor = weight.to(torch.float16), torch.ones_like(weight[:, :1])
    if not bool(torch.isfinite(half).all()):
        divisor = weight.abs().amax(1, keepdim=True).clamp(min=1)
        half = (weight / divisor).to(torch.float16)
    codes, absmax, _ = functional.int8_vectorwise_quant(half)
    empty = absmax == 0
    scale = torch.where(empty, torch.ones_like(absmax), absmax.float() * divisor.reshape(-1) / 127)
    return torch.where(empty[:, None], torch.zeros_like(codes), codes), scale
