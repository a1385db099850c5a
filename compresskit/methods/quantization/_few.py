"""What binary and ternary weights share: a scale for each row or group, and training straight through the signs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.core import surgery
from compresskit.core.compressor import Gain
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import WeightView, view
from compresskit.methods.quantization._packed import finite_weight, install_layer, refuse_packed_site
from compresskit.methods.quantization._self_taught import SelfTaught, install_deployed
from compresskit.methods.quantization._shared import weight_bytes
from compresskit.nn.fake_lookup import FakeLookupLinear
from compresskit.nn.lookup import LookupLinear
from compresskit.numerics.lookup import Lookup
from compresskit.numerics.packing import packed_bytes


class FewLevels(SelfTaught):
    """Two or three levels and a scale."""

    family: ClassVar[str] = "quantization"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory"})
    leaves: ClassVar[tuple[str, ...] | None] = ()
    levels: ClassVar[int]

    group: int | None = Field(None, ge=2, description="columns that share a scale; none: the whole row")
    scales: Literal["mean", "learned", "loss"] = Field(
        "mean", description="of weights: their mean size; in training also learned, or those that move the loss least"
    )

    @model_validator(mode="after")
    def _scales_are_trained(self) -> FewLevels:
        if self.scales != "mean" and not self.train:
            raise ValueError(f"scales {self.scales!r} are found in training: set `train` to a number of steps")
        if self._row_levels and self.group is not None:
            raise ValueError("learned levels are a row's: leave `group` out")
        return self

    @property
    def _row_levels(self) -> bool:
        """Whether each row has levels of its own, in place of a scale."""
        return self.scales == "learned" and self.levels == 3

    def zeroed(self) -> float:
        """The share of the mean size up to which a weight becomes 0."""
        return 0.0

    @abstractmethod
    def found(self, weight: Tensor) -> Lookup:
        """``weight`` (O, I) in codes."""

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return self.refuse_training(model) or refuse_packed_site(model, site, self.group)

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Exact."""
        return sum(self._saved(view(model, site.path)) for site in sites)

    def _saved(self, plain: WeightView) -> int:
        rows, columns = plain.weight.shape
        groups = 1 if self.group is None else columns // self.group
        bits = self.levels - 1
        tables, scales = (rows, 0) if self._row_levels else (1, rows * groups)
        return weight_bytes(plain) - rows * packed_bytes(columns, bits) - 4 * scales - 4 * tables * 2**bits

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.train:
            self.teach(model, context, lambda: self._begin(model, sites))
            for site in sites:
                install_deployed(model, site.path, context)
            return
        for number, site in enumerate(sites):
            plain = view(model, site.path)
            found = self.found(finite_weight(plain))
            layer = LookupLinear.from_lookup(found, self.levels - 1, plain.bias, plain.weight.dtype)
            install_layer(model, site.path, layer, context)
            context.progress((number + 1) / len(sites), site.path)

    def _begin(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        """Put the layers that are trained in place."""
        for site in sites:
            plain = view(model, site.path)
            finite_weight(plain)
            layer = FakeLookupLinear.from_weight(
                plain.weight, plain.bias, self.levels, self.group, self.scales, self.zeroed()
            )
            if plain.bias_parameter is not None:
                layer.bias = plain.bias_parameter
            surgery.replace(model, site.path, layer)
