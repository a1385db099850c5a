"""``quantization.static_int8``: int8 weights and activations with fixed scales, found on calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.moments import Moments, site_moments, site_samples
from compresskit.core import anatomy, surgery
from compresskit.core.compressor import Compressor, Gain, Need, Streams
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import WeightView, view, view_of
from compresskit.methods.quantization._calibrated import shared_inputs
from compresskit.methods.quantization._packed import finite_weight
from compresskit.methods.quantization._shared import (
    quantization_detail,
    refuse_integer_site,
    refuse_parts,
    weight_bytes,
)
from compresskit.nn.static_int8 import StaticInt8Linear
from compresskit.numerics import static_ranges
from compresskit.numerics.gptq import gptq_codes
from compresskit.numerics.grids import symmetric
from compresskit.registry import register

_SAMPLES = 8192
"""Input rows on which ranges and smoothing are searched."""
_TOP = 127
_FIXED_BYTES = 5
"""Scale and zero point of the input."""
_ALPHAS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_SHARES = (1.3, 1.15, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Parts of the range of the samples: unseen text goes beyond it, and a few outliers are better cut."""


@dataclass
class _Input:
    """What a matrix reads: samples (N, I), and moments of all."""

    rows: Tensor
    moments: Moments


@dataclass(frozen=True)
class _Choice:
    """How an input is quantized: multiplier (I,) or None, scale, zero point, and the error of the outputs."""

    multiplier: Tensor | None
    scale: float
    zero: int
    error: float
    alpha: float | None


@register
class StaticInt8(Compressor):
    """Int8 weights per output channel and activations in 8 bits with scales fixed by calibration, outliers smoothed.

    Queries, keys and values share one input, its range and its smoothing. Faster than quantization.int8, since nothing
    is measured at run time; and it depends on calibration text like the model's own.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "static_int8"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory", "latency"})
    walk: ClassVar[Literal["model", "block"]] = "block"
    streams: ClassVar[Streams | None] = "block"
    leaves: ClassVar[tuple[str, ...] | None] = ()
    paper: ClassVar[str] = "Jacob et al. 2018 (arXiv 1712.05877); smoothing: Xiao et al. 2023 (arXiv 2211.10438)"

    calibration: Literal["output", "minmax", "percentile", "mse", "entropy"] = Field(
        "output", description="range of an input: the part of it that moves outputs least, or a rule on its values"
    )
    percentile: float = Field(0.9999, gt=0.5, le=1.0, description="share of the values inside the range, for that rule")
    smooth: bool = Field(True, description="move outliers of inputs into the weights, by a scale searched per input")
    rounding: Literal["nearest", "gptq"] = Field(
        "gptq", description="codes of weights: the nearest, or those that make up for each other's errors"
    )
    damping: float = Field(0.01, gt=0.0, le=1.0, description="of gptq: share of the mean curvature added to it")
    scores: bool = Field(
        True, description="keep the range of queries and keys too: profile `static` multiplies them in int8"
    )
    largest_error: float | None = Field(
        None, gt=0.0, description="leave an input's matrices float where outputs would move more (relative, squared)"
    )

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """A weight becomes one byte, each row gets a scale, each matrix an input scale and perhaps a multiplier."""
        if self.largest_error is not None:
            return None
        scored = self._scored(model, sites)
        return sum(
            weight_bytes(plain) - _stored(plain, self.smooth, plain.path in scored)
            for plain in (view(model, site.path) for site in sites)
        )

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return refuse_parts(site) or refuse_integer_site(model, site)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.smooth:
            self._fold_into_values(model, sites, context)
        groups, scored = shared_inputs(model, sites, context), self._scored(model, sites)
        for number, group in enumerate(groups):
            # Gathered anew: the matrices before this one in the block are quantized by now.
            read = self._read(model, group[0], context, gram=self.rounding == "gptq")
            self._quantize(model, group, read, scored, context)
            context.progress((number + 1) / len(groups), group[0].path)

    def _read(self, model: PreTrainedModel, site: Site, context: Context, *, gram: bool) -> _Input:
        device = view(model, site.path).weight.device
        rows = site_samples(model, site, context.calibration, _SAMPLES).to(device, torch.float32)
        return _Input(rows, site_moments(model, site, context.calibration, gram=gram))

    def _scored(self, model: PreTrainedModel, sites: Sequence[Site]) -> frozenset[str]:
        """Those paths of ``sites`` whose matrix gives queries, or keys, and nothing else."""
        if not self.scores:
            return frozenset()
        asked = {site.path for site in sites}
        parts = [part for attention in anatomy.of(model).attentions for part in (attention.query, attention.key)]
        return frozenset(
            part.path
            for part in parts
            if part.path in asked and (part.start, part.stop) == (0, view(model, part.path).out_features)
        )

    def _quantize(
        self, model: PreTrainedModel, group: list[Site], read: _Input, scored: frozenset[str], context: Context
    ) -> None:
        plain = [view(model, site.path) for site in group]
        matrix = torch.cat([finite_weight(item) for item in plain])
        folded = any(context.details.get(site.path, {}).get("smoothing") == "folded" for site in group)
        choice = self._choose(read, matrix, smooth=self.smooth and not folded)
        if self.largest_error is not None and choice.error > self.largest_error:
            for site in group:
                context.details[site.path] = {"left_float": True, "output_error": choice.error}
            context.warn(
                f"{', '.join(site.path for site in group)} stays float: outputs would move by"
                f" {choice.error:.2%}, more than {self.largest_error:.2%}"
            )
            return
        for site, item in zip(group, plain, strict=True):
            scale = _largest_result(read.rows, item) / _TOP if site.path in scored else None
            layer = self._layer(item, read.moments, choice, scale, context)
            if item.bias_parameter is not None:
                layer.bias = item.bias_parameter
            stored = _stored(item, choice.multiplier is not None, scale is not None)
            detail = quantization_detail(item.weight, layer.weight, stored)
            smoothing: Any = "folded" if folded else choice.alpha
            context.details[site.path] = {**detail, "output_error": choice.error, "smoothing": smoothing}
            surgery.replace(model, site.path, layer)

    def _choose(self, found: _Input, matrix: Tensor, *, smooth: bool) -> _Choice:
        """The smoothing and the range with the least error of the outputs.

        Both are tried as found on the first half of the samples and judged on the second, so that a range that only
        just holds what it was made from doesn't win; the best is then made from all of them.
        """
        half = (found.rows.shape[0] + 1) // 2
        fit, judge = found.rows[:half], found.rows[half:] if half < found.rows.shape[0] else found.rows
        largest = matrix.abs().amax(0)
        tried: list[tuple[float, float | None, float]] = []
        exact = judge @ matrix.T
        for alpha in (None, *_ALPHAS) if smooth else (None,):
            scale = _smoothing(fit.abs().amax(0), largest, alpha)
            for share, error in self._errors(fit / scale, judge / scale, matrix * scale, exact):
                tried.append((error, alpha, share))
        error, alpha, share = min(tried, key=lambda each: each[0])
        scale = _smoothing(found.moments.abs_max.to(largest), largest, alpha)
        low, high = self._observed(found.rows / scale)
        return _Choice(
            None if alpha is None else 1 / scale, *static_ranges.affine(share * low, share * high), error, alpha
        )

    def _errors(self, fit: Tensor, judge: Tensor, matrix: Tensor, exact: Tensor) -> list[tuple[float, float]]:
        """(part of the range that ``fit`` gives, error of the outputs on ``judge``, which should be ``exact``)."""
        low, high = self._observed(fit)
        weights = symmetric(matrix, 8).values()
        norm = static_ranges.squared_norm(exact) or 1.0
        found = []
        for share in _SHARES if self.calibration == "output" else (1.0,):
            codes = static_ranges.rounded(judge, *static_ranges.affine(share * low, share * high))
            lost = torch.addmm(exact, codes, weights.T, beta=-1)
            found.append((share, static_ranges.squared_norm(lost) / norm))
        return found

    def _observed(self, rows: Tensor) -> tuple[float, float]:
        rule = "minmax" if self.calibration == "output" else self.calibration
        return static_ranges.observed_range(rows, rule, self.percentile)

    def _layer(
        self, plain: WeightView, moments: Moments, choice: _Choice, output_scale: float | None, context: Context
    ) -> StaticInt8Linear:
        weight = finite_weight(plain)
        weight = weight if choice.multiplier is None else weight / choice.multiplier
        grid = symmetric(weight, 8)
        codes = grid.codes
        if self.rounding == "gptq":
            try:
                codes = self._solved(weight, grid.scale, moments, choice)
            except torch.linalg.LinAlgError as error:
                context.warn(f"{plain.path} is rounded to nearest: {error}")
        return StaticInt8Linear.from_codes(
            codes,
            grid.scale,
            plain.bias,
            choice.scale,
            choice.zero,
            choice.multiplier,
            plain.weight.dtype,
            output_scale,
        )

    def _solved(self, weight: Tensor, scale: Tensor, moments: Moments, choice: _Choice) -> Tensor:
        """GPTQ's codes for what the product sees: the smoothed input, and the rounding of its codes as noise."""
        gram = cast(Tensor, moments.gram).to(weight.device)
        if choice.multiplier is not None:
            gram = gram * torch.outer(choice.multiplier, choice.multiplier)
        gram = gram + torch.eye(len(gram), device=gram.device) * (moments.count * choice.scale**2 / 12)
        return gptq_codes(weight, gram, scale, None, -_TOP, _TOP, damping=self.damping).to(torch.int8)

    def _fold_into_values(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        """Smooth what the output projection reads in the rows that make the values: it costs nothing at run time."""
        asked = {site.path: site for site in sites}
        for attention in anatomy.of(model).attentions:
            if attention.output not in asked or attention.heads != attention.kv_heads:
                continue
            output = view(model, attention.output)
            value = view_of(attention.value.path, model.get_submodule(attention.value.path))
            if value is None or surgery.aliases(model, value.path):
                continue
            read = self._read(model, asked[output.path], context, gram=False)
            choice = self._choose(read, finite_weight(output), smooth=True)
            if choice.multiplier is not None:
                _fold(output, value, attention.value, choice.multiplier)
                context.details[output.path] = {"smoothing": "folded"}


def _fold(output: WeightView, value: WeightView, part: anatomy.Rows, multiplier: Tensor) -> None:
    """Values times ``multiplier`` (I,), the matrix that reads them divided by it."""
    rows = torch.ones(value.out_features, dtype=multiplier.dtype, device=multiplier.device)
    rows[part.start : part.stop] = multiplier
    rows = rows.to(value.weight.dtype)
    bias = None if value.bias is None else value.bias.detach() * rows
    value.assign(value.weight.detach() * rows[:, None], bias)
    output.assign(output.weight.detach() / multiplier.to(output.weight.dtype))


def _smoothing(activations: Tensor, weights: Tensor, alpha: float | None) -> Tensor:
    return torch.ones_like(activations) if alpha is None else static_ranges.smoothing(activations, weights, alpha)


def _largest_result(rows: Tensor, plain: WeightView) -> float:
    """The largest magnitude among the results for ``rows`` (N, I)."""
    result = rows @ plain.weight.detach().float().T
    return max(float((result if plain.bias is None else result + plain.bias.detach().float()).abs().amax()), 1e-12)


def _stored(plain: WeightView, smooth: bool, scores: bool) -> int:
    """Bytes of codes, of a scale a row, of the input's scale and zero point, the multiplier, the results' scale."""
    more = 4 * plain.in_features * smooth + 4 * scores
    return plain.weight.numel() + 4 * plain.out_features + _FIXED_BYTES + more
