"""``quantization.rotation``: outliers spread over all channels, before the weights are rounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.forward import evaluating
from compresskit.calibrate.outputs import outputs_of
from compresskit.checkpoint.skeleton import computes_in_half
from compresskit.core import anatomy, surgery
from compresskit.core.compressor import Compressor
from compresskit.core.context import Batch, Context
from compresskit.core.sites import Site
from compresskit.core.weights import WeightView, view
from compresskit.errors import ModelError
from compresskit.methods.quantization._packed import finite_weight
from compresskit.methods.quantization._residual_stream import Stream, gain, stream_of, uniform
from compresskit.numerics.rotation import random_hadamard, rotate_inputs, rotate_outputs
from compresskit.registry import register

_TOLERANCE = 1e-4
_TOLERANCE_OF_HALVES = 0.05
"""Of the largest output: what rounding in float32, or in 16 bits, may change."""
_TOKENS = 16


@register
class Rotation(Compressor):
    """Residual stream and values of a model with RMSNorms rotated by Hadamard matrices: later rounding loses less.

    Nothing is computed otherwise, and nothing is stored beside: gains of the norms go into the matrices that read them,
    and the rotations into those that write and read. Follow it by a step that rounds weights to 4 bits or fewer. It
    pays where a few channels are far larger than others; small models without such channels lose a little by it. A head
    that is tied to the table must get a copy of its own where the last norm has gains; that costs its bytes.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "rotation"
    sites: ClassVar[frozenset[str]] = frozenset({"model"})
    paper: ClassVar[str] = "Ashkboos et al., QuaRot, NeurIPS 2024 (arXiv 2404.00456)"

    heads: bool = Field(True, description="rotate each head's values too, and the projection that reads them")

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        found = stream_of(model)
        return found if isinstance(found, str) else None

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Exact: 0, or less than that by the heads that are untied."""
        return -sum(plain.weight.numel() * plain.weight.element_size() for plain in self._to_untie(model))

    def plan_note(self, model: PreTrainedModel, sites: Sequence[Site]) -> str | None:
        """What untying costs."""
        heads = self._to_untie(model)
        if not heads:
            return None
        cost = -(self.predicted_saving(model, sites) or 0) / 2**20
        return f"{', '.join(plain.path for plain in heads)} gets weights of its own, which takes {cost:.2f} MiB more"

    def _to_untie(self, model: PreTrainedModel) -> list[WeightView]:
        """The heads that share the table's parameter, where the last norm's gain must go into them alone."""
        stream = stream_of(model)
        if isinstance(stream, str) or uniform(gain(model, stream.final.norm)):
            return []
        tables = {id(view(model, path).parameter) for path in stream.tables}
        readers = (view(model, path) for path in stream.final.readers)
        return [plain for plain in readers if id(plain.parameter) in tables]

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        stream = stream_of(model)
        if isinstance(stream, str):
            raise ModelError("CK-M060", "the model can't be rotated", where=type(model).__name__, why=stream)
        for path in stream.matrices:
            finite_weight(view(model, path))
        batch = _batch(model, context)
        with evaluating(model), torch.no_grad():
            before = outputs_of(model, batch)
            note = self.plan_note(model, sites)
            untied = self._to_untie(model)
            for plain in untied:
                surgery.untie(model, f"{plain.path}.weight")
            if note is not None:
                context.warn(note)
            self._rotate_stream(model, stream, context)
            if self.heads:
                self._rotate_heads(model, context)
            after = outputs_of(model, batch)
        largest = float((after - before).abs().max()) / max(float(before.abs().max()), 1e-6)
        context.details[""] = {"largest_difference": largest, "untied": [plain.path for plain in untied]}
        # Written so that NaN fails.
        if not largest <= (_TOLERANCE_OF_HALVES if computes_in_half(model) else _TOLERANCE):
            raise ModelError(
                "CK-M061",
                f"after the rotation the outputs differ by {largest:.1e} of the largest",
                where=type(model).__name__,
                why="a part that compresskit doesn't know reads or writes the residual stream",
                fix="leave this step out",
            )

    def _rotate_stream(self, model: PreTrainedModel, stream: Stream, context: Context) -> None:
        width = view(model, stream.tables[0]).in_features
        rotation = random_hadamard(width, context.generator())
        done: set[int] = set()
        for path in stream.tables:
            table = view(model, path)
            if id(table.parameter) not in done:
                table.assign(rotate_inputs(table.weight, rotation))
                done.add(id(table.parameter))
        for number, path in enumerate(stream.writers):
            _rotate_output(view(model, path), rotation)
            context.progress(0.4 * (number + 1) / len(stream.writers), path)
        for number, reading in enumerate(stream.readings):
            norm = gain(model, reading.norm)
            # Such a gain stays: a head that is tied to the table can then stay tied too.
            own = None if uniform(norm) else norm.detach().clone()
            for path in reading.readers:
                reader = view(model, path)
                if id(reader.parameter) not in done:
                    reader.assign(rotate_inputs(reader.weight, rotation, own))
            if own is not None:
                norm.fill_(1.0)
            context.progress(0.4 + 0.4 * (number + 1) / len(stream.readings), reading.norm)

    def _rotate_heads(self, model: PreTrainedModel, context: Context) -> None:
        parts = anatomy.of(model).attentions
        for number, part in enumerate(parts):
            rotation = random_hadamard(part.head_dim, context.generator())
            values, rows = view(model, part.value.path), slice(part.value.start, part.value.stop)
            weight, bias = values.weight.clone(), None if values.bias is None else values.bias.clone()
            weight[rows] = rotate_outputs(weight[rows], rotation)
            if bias is not None:
                bias[rows] = rotate_outputs(bias[rows], rotation)
            values.assign(weight, bias)
            output = view(model, part.output)
            output.assign(rotate_inputs(output.weight, rotation))
            context.progress(0.8 + 0.2 * (number + 1) / len(parts), part.path)


def _rotate_output(plain: WeightView, rotation: Tensor) -> None:
    bias = None if plain.bias is None else rotate_outputs(plain.bias, rotation)
    plain.assign(rotate_outputs(plain.weight, rotation), bias)


def _batch(model: PreTrainedModel, context: Context) -> Batch:
    """Tokens drawn at random, on which the outputs before and after are compared."""
    size = int(model.config.vocab_size)
    drawn = torch.randint(0, size, (2, _TOKENS), generator=context.generator())
    batch = {"input_ids": drawn, "attention_mask": torch.ones_like(drawn)}
    if model.config.is_encoder_decoder and model.can_generate():
        batch["decoder_input_ids"] = drawn.flip(1)
    return {name: values.to(model.device) for name, values in batch.items()}
