"""What binary and ternary weights share: a scale for each row or group, and nothing else to choose."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.core.compressor import Compressor, Gain
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import WeightView, view
from compresskit.methods.quantization._packed import finite_weight, install_layer, refuse_packed_site
from compresskit.methods.quantization._shared import weight_bytes
from compresskit.nn.lookup import LookupLinear
from compresskit.numerics.lookup import Lookup
from compresskit.numerics.packing import packed_bytes


class FewLevels(Compressor):
    """Two or three levels and a scale."""

    family: ClassVar[str] = "quantization"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    leaves: ClassVar[tuple[str, ...] | None] = ()
    code_bits: ClassVar[int]

    group: int | None = Field(None, ge=2, description="columns that share a scale; none: the whole row")

    @abstractmethod
    def found(self, weight: Tensor) -> Lookup:
        """``weight`` (O, I) in codes."""

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return refuse_packed_site(model, site, self.group)

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Exact."""
        return sum(self._saved(view(model, site.path)) for site in sites)

    def _saved(self, plain: WeightView) -> int:
        rows, columns = plain.weight.shape
        scales = rows * (1 if self.group is None else columns // self.group)
        stored = rows * packed_bytes(columns, self.code_bits) + 4 * scales + 4 * 2**self.code_bits
        return weight_bytes(plain) - stored

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        for number, site in enumerate(sites):
            plain = view(model, site.path)
            found = self.found(finite_weight(plain))
            layer = LookupLinear.from_lookup(found, self.code_bits, plain.bias, plain.weight.dtype)
            install_layer(model, site.path, layer, context)
            context.progress((number + 1) / len(sites), site.path)
