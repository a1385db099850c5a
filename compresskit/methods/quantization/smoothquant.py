"""``quantization.smoothquant``: outliers of inputs moved into the weights, then int8 as quantization.int8 has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.moments import site_moments, site_samples
from compresskit.core import anatomy, surgery
from compresskit.core.anatomy import Rows
from compresskit.core.compressor import Compressor, Gain, Need, Streams, Walk
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import view, view_of
from compresskit.methods.quantization._calibrated import shared_inputs
from compresskit.methods.quantization._fold import fold, fold_rows, norm_before
from compresskit.methods.quantization._int8 import install_int8, int8_bytes
from compresskit.methods.quantization._packed import finite_weight
from compresskit.methods.quantization._shared import refuse_integer_site, refuse_parts, weight_bytes
from compresskit.numerics import integer
from compresskit.numerics.grids import symmetric
from compresskit.numerics.static_ranges import powers_of_two, relative_error, smoothing
from compresskit.registry import register

_SAMPLES = 1024
"""Input rows on which alpha is searched."""
ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class _Pair:
    """The matrix at ``reader``, the ``rows`` that make what it reads, and where that is in the model.

    Args:
        heads, size: query heads that read one value, and the size of each.
    """

    reader: str
    rows: Rows
    place: str
    heads: int = 1
    size: int = 1


@register
class SmoothQuant(Compressor):
    """Int8 with dynamic activations after outliers of inputs were moved into the weights, as far as it costs nothing.

    Scales are divided out of the norm before, of the rows that make the values, or of the linear half of a gated
    feed-forward network, where that changes no output; a matrix behind none of them stays as it is. The exponent alpha
    is searched for each input by the error of the outputs, and none is taken where that is best. In models of 16 bits
    scales are powers of two, by which nothing is rounded.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "smoothquant"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory", "latency"})
    walk: ClassVar[Walk] = "block"
    streams: ClassVar[Streams | None] = "block"
    leaves: ClassVar[tuple[str, ...] | None] = ()
    paper: ClassVar[str] = "Xiao et al., SmoothQuant, ICML 2023 (arXiv 2211.10438)"

    activations: Literal["token", "tensor"] = Field(
        "token", description="one activation scale a token, or one for the whole tensor: faster, depends on the batch"
    )
    alpha: float | None = Field(
        None, ge=0.0, le=1.0, description="share of the outliers that moves into the weights; none: searched per input"
    )

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """As with quantization.int8: the smoothing is stored nowhere."""
        return sum(weight_bytes(plain) - int8_bytes(plain) for plain in (view(model, site.path) for site in sites))

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return refuse_parts(site) or refuse_integer_site(model, site)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        found = self._smooth_pairs(model, sites, context)
        done = 0
        for group in shared_inputs(model, sites, context):
            note = found.get(group[0].path) or self._smooth_norm(model, group, context)
            for site in group:
                install_int8(model, site.path, self.activations, context, **note)
            done += len(group)
            context.progress(done / len(sites), group[-1].path)

    def _smooth_norm(self, model: PreTrainedModel, group: list[Site], context: Context) -> dict[str, Any]:
        """Smooth what the matrices of ``group`` read, in the norm before them; what the ledger says of it."""
        plain = [view(model, site.path) for site in group]
        matrix = torch.cat([finite_weight(item) for item in plain])
        batches = context.calibration
        norm = norm_before(model, group[0].path, matrix.shape[1], batches)
        if norm is None:
            return {"alpha": None, "smoothing": "none"}
        alpha, scale = self._search(model, group[0], matrix, context, None)
        if scale is not None and fold(model, norm, plain, scale, batches):
            return {"alpha": alpha, "smoothing": "norm"}
        return {"alpha": None, "smoothing": "none"}

    def _smooth_pairs(
        self, model: PreTrainedModel, sites: Sequence[Site], context: Context
    ) -> dict[str, dict[str, Any]]:
        """Smooth what attention outputs and gated networks' outputs read, in the matrices that make it."""
        asked, found = {site.path: site for site in sites}, {}
        for pair in _pairs(model):
            site = asked.get(pair.reader)
            maker = view_of(pair.rows.path, model.get_submodule(pair.rows.path))
            if site is None or site.members or maker is None or surgery.aliases(model, maker.path):
                continue
            reader = view(model, pair.reader)
            alpha, scale = self._search(model, site, finite_weight(reader), context, pair)
            if scale is None:
                continue
            made = scale.reshape(-1, pair.heads, pair.size)[:, 0].reshape(-1)
            if fold_rows(model, maker, pair.rows, reader, made, scale, context.calibration):
                found[pair.reader] = {"alpha": alpha, "smoothing": pair.place}
        return found

    def _search(
        self, model: PreTrainedModel, site: Site, matrix: Tensor, context: Context, pair: _Pair | None
    ) -> tuple[float | None, Tensor | None]:
        """The exponent with the least error of the outputs on samples that its scale wasn't made from, and that scale.

        Args:
            matrix: all that read this input, (O, I).
            pair: whose query heads that read one value get equal scales.
        """
        samples = site_samples(model, site, context.calibration, _SAMPLES).to(matrix.device, torch.float32)
        half = (len(samples) + 1) // 2
        fit, judge = samples[:half], samples[half:] if half < len(samples) else samples
        exact = judge @ matrix.T
        largest = _by_group(matrix.abs().amax(0), pair)
        halves = view(model, site.path).weight.dtype.itemsize == 2

        def scale_of(seen: Tensor, alpha: float) -> Tensor:
            scale = smoothing(_by_group(seen, pair), largest, alpha)
            # Any other factor would round the weights of a model in 16 bits twice, and its outputs move.
            return powers_of_two(scale) if halves else scale

        def error(alpha: float | None) -> float:
            scale = torch.ones_like(largest) if alpha is None else scale_of(fit.abs().amax(0), alpha)
            grid = symmetric(matrix * scale, 8)
            per_token = self.activations == "token"
            found = integer.linear(judge / scale, grid.codes, grid.scale.reshape(-1), None, per_token=per_token)
            return relative_error(found, exact)

        best = min((None, *ALPHAS), key=error) if self.alpha is None else self.alpha
        if best is None:
            return None, None
        moments = site_moments(model, site, context.calibration, gram=False)
        return best, scale_of(moments.abs_max.to(largest), best)


def _pairs(model: PreTrainedModel) -> list[_Pair]:
    body = anatomy.of(model)
    found = [
        _Pair(part.output, part.value, "values", part.heads // part.kv_heads, part.head_dim)
        for part in body.attentions
        if part.heads % part.kv_heads == 0
    ]
    gated = [part for part in body.ffns if len(part.inputs) == 2]
    return found + [_Pair(part.output, Rows(part.inputs[1], 0, part.width), "up") for part in gated]


def _by_group(values: Tensor, pair: _Pair | None) -> Tensor:
    """``values`` (I,), the largest of a group of query heads for each of them."""
    if pair is None or pair.heads == 1:
        return values
    parts = values.reshape(-1, pair.heads, pair.size)
    return parts.amax(1, keepdim=True).expand_as(parts).reshape(-1)
