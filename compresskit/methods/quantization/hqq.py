"""``quantization.hqq``: few bits without data, by half-quadratic splitting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core.compressor import Gain, Streams
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import view
from compresskit.methods.quantization._packed import WeightOnly, Zeros, finite_weight, install
from compresskit.numerics.hqq import POWER, STEPS, hqq
from compresskit.numerics.rtn import scale_type
from compresskit.registry import register


@register
class Hqq(WeightOnly):
    """Weights in 2 to 8 bits with zero points between codes, found without data by half-quadratic splitting.

    Closer to the weights than rounding alone; each zero point takes as many bits as a scale. Activations stay float.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "hqq"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    leaves: ClassVar[tuple[str, ...] | None] = ()
    streams: ClassVar[Streams | None] = "site"
    paper: ClassVar[str] = "Badri and Shaji, Half-Quadratic Quantization, 2023"

    power: float = Field(POWER, gt=0, le=1, description="p of the error |w - w'|^p that is minimised")
    steps: int = Field(STEPS, ge=0, le=1000, description="half-quadratic steps")

    def zeros(self) -> Zeros:
        return "float"

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.nothing_asked():
            return
        for number, site in enumerate(sites):
            weight = finite_weight(view(model, site.path))
            kind = scale_type(weight, self.bits)
            codes = hqq(weight, self.bits, self.columns, power=self.power, steps=self.steps, scale_dtype=kind)
            install(model, site.path, codes, context)
            context.progress((number + 1) / len(sites), site.path)
