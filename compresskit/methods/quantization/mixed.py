"""``quantization.mixed``: bits where they matter, within a budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.calibrate.blocks import BlockCalibration
from compresskit.calibrate.gradients import gradient_sizes, weight_gradients
from compresskit.calibrate.moments import input_moments
from compresskit.calibrate.outputs import output_kind
from compresskit.core import surgery
from compresskit.core.compressor import Compressor, Gain, Need
from compresskit.core.context import Batch, Context
from compresskit.core.sites import Site
from compresskit.core.weights import WeightView, view
from compresskit.errors import RecipeError
from compresskit.methods.quantization._calibrated import gptq_or_nearest, inputs_in_order, warn_unrouted
from compresskit.methods.quantization._packed import (
    WHOLE_BITS,
    finite_weight,
    install,
    refuse_packed_site,
    stored_bytes,
)
from compresskit.methods.quantization._shared import weight_bytes
from compresskit.methods.quantization._tables import install_table, refuse_table, table_bytes
from compresskit.nn.embedding import Bits
from compresskit.numerics.allocation import Option, allocate
from compresskit.numerics.gptq import output_error
from compresskit.numerics.grids import asymmetric, symmetric
from compresskit.numerics.rtn import Codes, quantize, scale_type
from compresskit.registry import register
from compresskit.tasks.fidelity import compare, outputs

_PROBES = 4
"""Batches on which the model's own change is measured, once for each site."""


@register
class Mixed(Compressor):
    """Bits for each matrix and table chosen by what its rounding costs the model's result, within a budget of bytes.

    Each site is rounded alone once, and the change of the model's outputs measured; its error at other bits follows
    from its own outputs. Or all sites are weighed at once by the traces of their outputs' Hessians, as gradients give
    them: faster with many sites. A knapsack then spends the budget. Matrices are rounded by gptq, or to nearest.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "mixed"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix", "embedding"})
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    leaves: ClassVar[tuple[str, ...] | None] = ()
    paper: ClassVar[str] = (
        "Shen et al., Q-BERT, AAAI 2020 (arXiv 1909.05840); hessian: Dong et al., HAWQ-V2, 2020 (arXiv 1911.03852)"
    )

    bits: float = Field(4.5, ge=2, le=32, description="bits on disk for a weight, scales included; 16 leaves all")
    mebibytes: float | None = Field(None, gt=0, description="the budget for all sites in MiB instead")
    choices: tuple[Bits, ...] = Field((2, 3, 4, 5, 6, 8), min_length=1, description="bits that a site may get")
    group: int = Field(64, ge=2, description="columns that share a scale")
    rounding: Literal["gptq", "nearest"] = Field("gptq", description="how matrices are rounded")
    sensitivity: Literal["measured", "hessian"] = Field(
        "measured", description="what a site's error counts: the output's change as measured, or traces of Hessians"
    )

    @field_validator("choices")
    @classmethod
    def _ascending(cls, value: tuple[Bits, ...]) -> tuple[Bits, ...]:
        return tuple(sorted(set(value)))

    def nothing_asked(self) -> str | None:
        """16 bits and more."""
        if self.mebibytes is None and self.bits >= WHOLE_BITS:
            return f"bits {self.bits:g} leaves every weight as it is"
        return None

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        if self.nothing_asked():
            return None
        if site.kind == "embedding":
            return refuse_table(model, site.path, self.choices[-1], self.group)
        return refuse_packed_site(model, site, self.group)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.nothing_asked():
            return
        budget = self._budget(model, sites)
        worth = self._worth(model, sites, context)
        options = [
            [Option(self._bytes(view(model, site.path), bits), worth[site.path][bits]) for bits in self.choices]
            for site in sites
        ]
        chosen = allocate(options, budget)
        if chosen is None:
            least = sum(min(option.cost for option in each) for each in options)
            raise RecipeError(
                "CK-T056",
                f"the budget of {budget:,} bytes is below the {least:,} that {self.choices[0]} bits take",
                fix="raise bits or mebibytes, allow fewer bits in choices, or enlarge the group",
            )
        bits = {site.path: self.choices[index] for site, index in zip(sites, chosen, strict=True)}
        self._round(model, sites, bits, context)

    def _budget(self, model: PreTrainedModel, sites: Sequence[Site]) -> int:
        if self.mebibytes is not None:
            return int(self.mebibytes * 2**20)
        return int(sum(view(model, site.path).weight.numel() for site in sites) * self.bits / 8)

    def _bytes(self, plain: WeightView, bits: int) -> int:
        if plain.table:
            return table_bytes(plain, bits, self.group)
        return stored_bytes(plain, bits, self.group)

    def _worth(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> dict[str, dict[int, float]]:
        """What each site loses at each number of bits, in units of the model's result."""
        weigh = _Measured(model, context) if self.sensitivity == "measured" else _Traces(model, sites, context)
        found: dict[str, dict[int, float]] = {}
        for number, (site, gram) in enumerate(_inputs_of(model, sites, context)):
            plain = view(model, site.path)
            weight = finite_weight(plain)
            changes = {bits: self._rounded(plain, weight, bits) - weight for bits in self.choices}
            local = {bits: _size(change, gram) for bits, change in changes.items()}
            # Measured where the change is large enough to stand out, and small enough to be one of many.
            probe = min(self.choices, key=lambda bits: abs(bits - 3))
            share = weigh(plain, weight, changes[probe], local[probe])
            found[site.path] = {bits: share * size for bits, size in local.items()}
            context.progress(0.5 * (number + 1) / len(sites), f"sensitivity of {site.path}")
        return found

    def _rounded(self, plain: WeightView, weight: Tensor, bits: int) -> Tensor:
        if plain.table and bits == 8:
            return symmetric(weight, 8, self.group).values()
        if plain.table:
            return asymmetric(weight, bits, self.group, scale_dtype=torch.float16).values()
        return quantize(weight, bits, self.group, scale_dtype=scale_type(weight, bits)).values()

    def _round(self, model: PreTrainedModel, sites: Sequence[Site], bits: dict[str, Any], context: Context) -> None:
        for site in sites:
            if site.kind == "embedding":
                install_table(model, site.path, bits[site.path], self.group, context)
        done = 0
        unrouted: list[str] = []
        for part, calibration in _walked(model, [site for site in sites if site.kind == "matrix"], context):
            inner = Context(calibration=calibration, seed=context.seed, details=context.details, warn=context.warn)
            for group, moments in inputs_in_order(model, part, inner):
                gram = cast(Tensor, moments.gram) / moments.count if moments.count else None
                if gram is None:
                    unrouted += [site.path for site in group]
                for site in group:
                    weight = finite_weight(view(model, site.path))
                    codes, note = self._codes(weight, gram, bits[site.path], site.path, context)
                    install(model, site.path, codes, context, **note)
            done += len(part)
            context.progress(0.5 + 0.5 * done / len(sites), part[-1].path)
        warn_unrouted(unrouted, "they are rounded to nearest", context)

    def _codes(
        self, weight: Tensor, gram: Tensor | None, bits: int, path: str, context: Context
    ) -> tuple[Codes, dict[str, Any]]:
        if self.rounding == "gptq":
            return gptq_or_nearest(weight, gram, bits, self.group, path, context, symmetric=False)
        return quantize(weight, bits, self.group, scale_dtype=scale_type(weight, bits)), {}

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """At least this much: the budget is kept, and not always spent."""
        if self.nothing_asked():
            return 0
        return sum(weight_bytes(view(model, site.path)) for site in sites) - self._budget(model, sites)


def _walked(
    model: PreTrainedModel, sites: Sequence[Site], context: Context
) -> Iterator[tuple[list[Site], Sequence[Batch]]]:
    """The sites block by block, with calibration that runs the block alone."""
    walk = BlockCalibration(context.calibration)
    for block in dict.fromkeys(site.block for site in sites):
        if block is not None:
            walk.enter(model, block)
        yield [site for site in sites if site.block == block], walk if block is not None else context.calibration


def _inputs_of(model: PreTrainedModel, sites: Sequence[Site], context: Context) -> Iterator[tuple[Site, Tensor | None]]:
    """Each site with the second moments of its input, None for a table."""
    for site in sites:
        if site.kind == "embedding":
            yield site, None
    surgery.open_parts(model, [site.path for site in sites if site.kind == "matrix"])
    for part, calibration in _walked(model, [site for site in sites if site.kind == "matrix"], context):
        moments = input_moments(model, [site.path for site in part], calibration, unrouted=True)
        for site in part:
            yield site, moments[site.path].gram


def _size(change: Tensor, gram: Tensor | None) -> float:
    """Squared error of the outputs, or of a table's weights."""
    return float(change.double().square().sum()) if gram is None else output_error(change, gram)


class _Measured:
    """How far the model's result moves for each squared error of a site's own: 1 - cosine, or KL divergence."""

    def __init__(self, model: PreTrainedModel, context: Context) -> None:
        self.model, self.kind = model, output_kind(model)
        self.probes = list(context.calibration[:_PROBES])
        self.reference = outputs(model, self.probes) if self.probes else []

    def __call__(self, plain: WeightView, weight: Tensor, change: Tensor, size: float) -> float:
        before = plain.weight.detach().clone()
        plain.assign((weight + change).to(before.dtype))
        try:
            scores = compare(self.reference, self.model, self.probes, self.kind)
        finally:
            plain.assign(before)
        moved = 1 - scores["cosine_mean"] if self.kind == "embedding" else scores["kl_mean"]
        return max(float(moved), 1e-12) / max(size, 1e-300)


class _Traces:
    """The same by traces: of the Hessian of a matrix's outputs, or of a table, which a head may share."""

    def __init__(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        surgery.open_parts(model, [site.path for site in sites])
        tables = {
            site.path: cast(nn.Parameter, model.get_submodule(site.path).weight)
            for site in sites
            if site.kind == "embedding"
        }
        matrices = [site.path for site in sites if site.path not in tables]
        self.shares = gradient_sizes(model, matrices, context.calibration, seed=context.seed)
        if tables:
            traces = weight_gradients(model, tables, context.calibration, seed=context.seed)
            self.shares |= {path: trace / tables[path].numel() for path, trace in traces.items()}
        unreached = [path for path, share in self.shares.items() if share == 0]
        if unreached:
            some = ", ".join(unreached[:3]) + (f" and {len(unreached) - 3} more" if len(unreached) > 3 else "")
            context.warn(f"no gradient reaches {some}: the fewest bits are taken there")

    def __call__(self, plain: WeightView, weight: Tensor, change: Tensor, size: float) -> float:
        return self.shares[plain.path]
