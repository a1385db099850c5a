"""``quantization.awq``: weights that meet large inputs are scaled up before they are rounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.moments import Moments
from compresskit.core.compressor import Gain, Need, Streams, Walk
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import view
from compresskit.methods.quantization._calibrated import inputs_in_order, warn_unrouted
from compresskit.methods.quantization._fold import fold, norm_before
from compresskit.methods.quantization._packed import SymmetricOrNot, finite_weight, install
from compresskit.numerics import awq
from compresskit.numerics.gptq import output_error
from compresskit.numerics.rtn import Codes, quantize, scale_type
from compresskit.registry import register


@register
class Awq(SymmetricOrNot):
    """Weights in 2 to 8 bits, columns that meet large inputs scaled up before rounding; the exponent is searched.

    Matrices with one input share its scales. They go into the norm before them where nothing else reads it, else the
    layer multiplies its input. Activations stay float.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "awq"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    walk: ClassVar[Walk] = "block"
    streams: ClassVar[Streams | None] = "block"
    leaves: ClassVar[tuple[str, ...] | None] = ()
    paper: ClassVar[str] = "Lin et al., AWQ, MLSys 2024 (arXiv 2306.00978)"

    fold: bool = Field(True, description="put scales into the norm before, where that changes nothing else")

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Unknown: the data decide which layers get scales of their own."""
        return 0 if self.nothing_asked() else None

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.nothing_asked():
            return
        unrouted: list[str] = []
        for group, moments in inputs_in_order(model, sites, context):
            if moments.count:
                self._compress(model, group, moments, context)
                continue
            unrouted += [site.path for site in group]
            for site in group:
                weight = finite_weight(view(model, site.path))
                codes = self._rounded(weight, torch.ones(weight.shape[1], device=weight.device), True)
                install(model, site.path, codes, context, fallback="nearest")
        warn_unrouted(unrouted, "they are rounded to nearest", context)

    def _compress(self, model: PreTrainedModel, group: list[Site], moments: Moments, context: Context) -> None:
        views = [view(model, site.path) for site in group]
        weights = [finite_weight(plain) for plain in views]
        gram = (cast(Tensor, moments.gram) / moments.count).to(weights[0].device)
        found = awq.search(weights, gram, moments.abs_mean.to(gram.device), self._rounded)
        scale, folded = found.scale, False
        if scale is not None and self.fold:
            batches = context.calibration
            norm = norm_before(model, group[0].path, weights[0].shape[1], batches)
            folded = norm is not None and fold(model, norm, views, scale, batches)
        own = None if scale is None or folded else 1 / scale
        for site, weight, codes in zip(group, weights, found.codes, strict=True):
            values = codes.values() if scale is None else codes.values() / scale
            whole = output_error(weight, gram)
            error = (output_error(values - weight, gram) / whole) ** 0.5 if whole > 0 else 0.0
            more = {"alpha": found.alpha, "scales": "none" if scale is None else "norm" if folded else "layer"}
            install(model, site.path, codes, context, own, output_error=error, **more)

    def _rounded(self, weight: Tensor, importance: Tensor, thorough: bool) -> Codes:
        return quantize(
            weight,
            self.bits,
            self.columns,
            symmetric=self.symmetric,
            search=thorough,
            importance=importance,
            scale_dtype=scale_type(weight, self.bits),
        )
