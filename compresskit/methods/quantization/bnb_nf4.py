"""``quantization.bnb_nf4``: bitsandbytes' NF4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core.compressor import Compressor, Gain, Streams
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import WeightView, view
from compresskit.methods.quantization._bitsandbytes import PACKAGE, library, refuse_without_package
from compresskit.methods.quantization._packed import finite_weight, install_layer
from compresskit.methods.quantization._shared import refuse_integer_site, weight_bytes
from compresskit.nn.bitsandbytes_layers import BitsandbytesNf4Linear
from compresskit.numerics.nf4_blocks import NESTED_BLOCK
from compresskit.registry import register


@register
class BnbNf4(Compressor):
    """Weights in bitsandbytes' NF4: its codes, and its kernels where there is a CUDA device.

    Needs the package bitsandbytes, on a CPU or a CUDA device. The checkpoint loads, computes and exports without it:
    the ONNX file holds the 4-bit codes, which are looked up when a session is made, and multiplies floats.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "bnb_nf4"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    leaves: ClassVar[tuple[str, ...] | None] = ()
    streams: ClassVar[Streams | None] = "site"
    package: ClassVar[str] = PACKAGE
    paper: ClassVar[str] = "Dettmers et al., QLoRA, NeurIPS 2023 (arXiv 2305.14314)"

    block: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = Field(
        64, description="weights that share a scale, counted through the flattened matrix"
    )
    double: bool = Field(True, description="scales in 8 bits themselves")

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return refuse_without_package(site) or refuse_integer_site(model, site)

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Exact."""
        return sum(self._saved(view(model, site.path)) for site in sites)

    def _saved(self, plain: WeightView) -> int:
        count = plain.weight.numel()
        blocks = -(-count // self.block)
        scales = blocks + 4 * -(-blocks // NESTED_BLOCK) + 4 * 257 if self.double else 4 * blocks
        return weight_bytes(plain) - -(-count // 2) - scales

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        functional = library().functional
        for number, site in enumerate(sites):
            plain = view(model, site.path)
            weight = finite_weight(plain).contiguous()
            with torch.no_grad():
                codes, state = functional.quantize_4bit(
                    weight, blocksize=self.block, compress_statistics=self.double, quant_type="nf4"
                )
            layer = BitsandbytesNf4Linear.from_state(codes, state, plain.bias, plain.weight.dtype)
            install_layer(model, site.path, layer, context)
            context.progress((number + 1) / len(sites), site.path)
