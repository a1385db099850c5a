"""``quantization.residual``: few bits, and two thin matrices that make up for what rounding lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.core.compressor import Gain, Need, Streams, Walk
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import WeightView, view
from compresskit.methods.quantization._calibrated import gptq_or_nearest, inputs_in_order, warn_unrouted
from compresskit.methods.quantization._packed import (
    WHOLE_BITS,
    Bits,
    SymmetricOrNot,
    finite_weight,
    install_layer,
)
from compresskit.nn.low_rank import LowRankLinear
from compresskit.nn.packed import PackedLinear
from compresskit.nn.residual import ResidualLinear
from compresskit.numerics.gptq import output_error
from compresskit.numerics.low_rank import square_root
from compresskit.numerics.packing import packed_bytes
from compresskit.numerics.residual import correction
from compresskit.numerics.rtn import Codes, quantize, scale_type
from compresskit.registry import register


@register
class Residual(SymmetricOrNot):
    """Weights in 2 to 8 bits plus a product of two thin matrices that is fitted to what rounding lost on real inputs.

    It quantizes itself, since the correction needs the weights from before. With ``whiten`` the correction is the one
    that loses least of the outputs, in closed form; without, of the weights. Activations stay float.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "residual"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    walk: ClassVar[Walk] = "block"
    streams: ClassVar[Streams | None] = "block"
    leaves: ClassVar[tuple[str, ...] | None] = ()
    paper: ClassVar[str] = (
        "Zhang et al., LQER, ICML 2024 (arXiv 2402.02446); Liu et al., EoRA, 2024 (arXiv 2410.21271); Zhang et al.,"
        " QERA, ICLR 2025 (arXiv 2410.06040)"
    )

    rank: int = Field(16, ge=1, description="rank of the correction; at most the smaller side of the matrix")
    rounding: Literal["gptq", "nearest"] = Field("gptq", description="how the weights are rounded before")
    whiten: bool = Field(
        True, description="fit the correction to the outputs on calibration inputs, not to the weights"
    )
    factor_bits: Bits = Field(8, description="bits of the thin matrices, one scale a row; 16: as the model stores them")

    def requirements(self) -> frozenset[Need]:
        return self.needs if self.whiten or self.rounding == "gptq" else frozenset()

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        refused = super().refuse_site(model, site)
        if refused or self.nothing_asked():
            return refused
        plain = view(model, site.path)
        if self._saved(plain) > 0:
            return None
        return f"its codes and factors of rank {self._rank(plain)} would take no fewer bytes than it does: lower rank"

    def _rank(self, plain: WeightView) -> int:
        return min(self.rank, plain.out_features, plain.in_features)

    def _saved(self, plain: WeightView) -> int:
        return super()._saved(plain) - self._factor_bytes(plain)

    def _factor_bytes(self, plain: WeightView) -> int:
        rank, rows, columns = self._rank(plain), plain.out_features, plain.in_features
        if self.factor_bits >= WHOLE_BITS:
            return rank * (rows + columns) * plain.weight.element_size()
        codes = rank * packed_bytes(columns, self.factor_bits) + rows * packed_bytes(rank, self.factor_bits)
        return codes + _FACTOR_SCALE * (rank + rows)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.nothing_asked():
            return
        for site, gram, root in self._statistics(model, sites, context):
            with torch.no_grad():
                self._compress(model, site.path, gram, root, context)

    def _statistics(
        self, model: PreTrainedModel, sites: Sequence[Site], context: Context
    ) -> Iterator[tuple[Site, Tensor | None, Tensor | None]]:
        """Each site with the second moments of its inputs and a root of them, as far as the options want them."""
        if not self.requirements():
            for number, site in enumerate(sites):
                yield site, None, None
                context.progress((number + 1) / len(sites), site.path)
            return
        unrouted: list[str] = []
        for group, moments in inputs_in_order(model, sites, context):
            if not moments.count:
                unrouted += [site.path for site in group]
                yield from ((site, None, None) for site in group)
                continue
            gram = cast(Tensor, moments.gram)
            device = view(model, group[0].path).weight.device
            root = square_root(gram.to(device) / moments.count) if self.whiten else None
            for site in group:
                yield site, gram, root
        warn_unrouted(unrouted, "they are rounded to nearest and corrected by their values alone", context)

    def _compress(
        self, model: PreTrainedModel, path: str, gram: Tensor | None, root: Tensor | None, context: Context
    ) -> None:
        plain = view(model, path)
        weight = finite_weight(plain)
        codes, note = self._codes(weight, gram, path, context)
        rounded = codes.values()
        up, down = correction(weight, rounded, self._rank(plain), root)
        dtype = plain.weight.dtype
        factors = LowRankLinear.from_factors(up.to(dtype), down.to(dtype), None)
        if self.factor_bits < WHOLE_BITS:
            factors.up, factors.down = (self._packed(part, dtype) for part in (up, down))
        layer = ResidualLinear.from_parts(PackedLinear.from_codes(codes, None, dtype), factors, plain.bias)
        if gram is not None:
            whole = output_error(weight, gram)
            for name, values in (("output_error", layer.weight), ("uncorrected_error", rounded)):
                lost = output_error(values.float() - weight, gram)
                note[name] = (max(lost, 0.0) / whole) ** 0.5 if whole > 0 else 0.0
        install_layer(model, path, layer, context, bits=codes.bits, rank=factors.rank, **note)

    def _codes(self, weight: Tensor, gram: Tensor | None, path: str, context: Context) -> tuple[Codes, dict[str, Any]]:
        if self.rounding == "gptq" and gram is not None:
            return gptq_or_nearest(weight, gram, self.bits, self.columns, path, context, symmetric=self.symmetric)
        kind = scale_type(weight, self.bits)
        return quantize(weight, self.bits, self.columns, symmetric=self.symmetric, scale_dtype=kind), {}

    def _packed(self, factor: Tensor, dtype: Any) -> PackedLinear:
        """``factor`` in few bits. Its scales are in float32: rows of weak directions are small."""
        return PackedLinear.from_codes(quantize(factor, self.factor_bits, symmetric=True), None, dtype)


_FACTOR_SCALE = 4
"""Bytes of a scale of the factors."""
