"""``quantization.gptq``: columns rounded one by one, each making up for what those before it lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from transformers import PreTrainedModel

from compresskit.core.compressor import Gain, Need, Streams, Walk
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import view
from compresskit.methods.quantization._calibrated import gptq_or_nearest, inputs_in_order, warn_unrouted
from compresskit.methods.quantization._packed import SymmetricOrNot, finite_weight, install
from compresskit.numerics.gptq import DAMPING, output_error
from compresskit.registry import register


@register
class Gptq(SymmetricOrNot):
    """Weights in 2 to 8 bits, column by column: what rounding one loses on real inputs is made up for by the next.

    Block by block: each matrix is fitted to the inputs that the compressed part before it gives. Activations stay
    float. Where the inputs' moments can't be inverted, or no token is routed to an expert, the matrix is rounded to
    nearest, and the report says so.
    """

    family: ClassVar[str] = "quantization"
    name: ClassVar[str] = "gptq"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    walk: ClassVar[Walk] = "block"
    streams: ClassVar[Streams | None] = "block"
    leaves: ClassVar[tuple[str, ...] | None] = ()
    paper: ClassVar[str] = "Frantar et al., GPTQ, ICLR 2023 (arXiv 2210.17323)"

    act_order: bool = Field(True, description="round the columns with the largest inputs first")
    damping: float = Field(DAMPING, gt=0, le=1, description="share of the mean curvature that is added to it")

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.nothing_asked():
            return
        unrouted: list[str] = []
        for group, moments in inputs_in_order(model, sites, context):
            gram = moments.gram if moments.count else None
            unrouted += [site.path for site in group if gram is None]
            for site in group:
                weight = finite_weight(view(model, site.path))
                codes, note = gptq_or_nearest(
                    weight,
                    gram,
                    self.bits,
                    self.columns,
                    site.path,
                    context,
                    symmetric=self.symmetric,
                    damping=self.damping,
                    act_order=self.act_order,
                )
                if gram is not None:
                    whole = output_error(weight, gram)
                    lost = output_error(codes.values() - weight, gram)
                    note["output_error"] = (lost / whole) ** 0.5 if whole > 0 else 0.0
                install(model, site.path, codes, context, **note)
        warn_unrouted(unrouted, "they are rounded to nearest", context)
