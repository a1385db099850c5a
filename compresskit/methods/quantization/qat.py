"""``quantization.qat``: training through the rounding, towards what the model gave before.

Texts need no labels: the model in floats teaches itself in few bits (QAD: arXiv 2601.20088). What is trained is the
fake-quantized layer of ``nn.fake_quantized``; what is stored are the layers of rtn, or of int8.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from transformers import PreTrainedModel

from compresskit.core import surgery
from compresskit.core.compressor import Gain, Need
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import WeightView, view
from compresskit.methods.quantization._int8 import int8_bytes
from compresskit.methods.quantization._packed import SymmetricOrNot, finite_weight, refuse_packed_site, stored_bytes
from compresskit.methods.quantization._self_taught import install_deployed, refuse_headless
from compresskit.methods.quantization._shared import refuse_integer_site, weight_bytes
from compresskit.nn.fake_quantized import FakeQuantizedLinear
from compresskit.numerics.grids import symmetric
from compresskit.numerics.rtn import Codes, quantize, scale_type
from compresskit.registry import register
from compresskit.train.objective import towards_output
from compresskit.train.options import Training, training_options, training_texts
from compresskit.train.recovery import recover


@register
class Qat(SymmetricOrNot, Training):
    """Weights in 2 to 8 bits, trained through the rounding towards the outputs of the model before; steps learned.

    Starts at what quantization.rtn finds and ends in the same packed layers; with ``inputs`` quantized, in those of
    quantization.int8. Everything that is float is trained too, tables excepted.

    ```yaml
    - quantization.qat: {bits: 3, steps: 300, lr: 1.0e-4}
    ```
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "qat"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    needs: ClassVar[frozenset[Need]] = frozenset({"training", "teacher"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    leaves: ClassVar[tuple[str, ...] | None] = ()
    paper: ClassVar[str] = "Esser et al., LSQ, ICLR 2020 (arXiv 1902.08153); self-distilled: QAD, arXiv 2601.20088"

    scales: Literal["learned", "fixed"] = Field(
        "learned", description="learned: LSQ; fixed: as rtn finds them, straight-through weights alone"
    )
    inputs: Literal["float", "token", "tensor"] = Field(
        "float", description="float; or 8 bits as they come, by token or by tensor: with bits 8, as quantization.int8"
    )
    towards: Literal["before", "source"] = Field(
        "before", description="what teaches: the model as it comes to this step, or the run's teacher"
    )
    temperature: float = Field(1.0, gt=0, le=100, description="softens the distributions of models with a head")

    @model_validator(mode="after")
    def _integer_products_take_8_bits(self) -> Qat:
        if self.inputs != "float" and self.bits < 8:
            raise ValueError(f"quantized inputs are multiplied by weights of 8 bits, not {self.bits}")
        return self

    def requirements(self) -> frozenset[Need]:
        """The model teaches itself, unless the run's teacher is asked for."""
        if self.nothing_asked():
            return frozenset()
        return frozenset({"training", "teacher"} if self.towards == "source" else {"training"})

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        if self.nothing_asked():
            return None
        if headless := refuse_headless(model):
            return headless
        if self.inputs != "float":
            return refuse_integer_site(model, site)
        return refuse_packed_site(model, site, self.columns)

    def _saved(self, plain: WeightView) -> int:
        if self.inputs != "float":
            return weight_bytes(plain) - int8_bytes(plain)
        return weight_bytes(plain) - stored_bytes(plain, self.bits, self.columns, self.zeros())

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.nothing_asked():
            return
        teacher = copy.deepcopy(model).eval() if self.towards == "before" else None
        for site in sites:
            self._begin(model, site)
        options, texts = training_options(self), training_texts(self, context)
        objective = towards_output(model, self.temperature)
        outcome = recover(model, context, objective, texts, options, teacher=teacher)
        for site in sites:
            install_deployed(model, site.path, context, bits=self.bits)
        context.details["training"] = asdict(outcome)

    def _begin(self, model: PreTrainedModel, site: Site) -> None:
        """Put the fake-quantized layer at ``site``."""
        plain = view(model, site.path)
        weight = finite_weight(plain)
        learned = self.scales == "learned"
        layer = FakeQuantizedLinear.from_codes(
            self._codes(weight), plain.weight, plain.bias, inputs=self.inputs, learned=learned
        )
        if plain.bias_parameter is not None:
            # The very parameter: the bias of BERT's head is that of `predictions` too.
            layer.bias = plain.bias_parameter
        surgery.replace(model, site.path, layer)

    def _codes(self, weight: torch.Tensor) -> Codes:
        if self.inputs != "float":
            grid = symmetric(weight, 8)
            return Codes((grid.codes.to(torch.int16) + 128).to(torch.uint8), grid.scale, None, 8)
        kind = scale_type(weight, self.bits)
        return quantize(weight, self.bits, self.columns, symmetric=self.symmetric, scale_dtype=kind)
