"""What the methods share that store weights in few bits and compute in floats: options, sizes, refusals, the layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.core import surgery
from compresskit.core.compressor import Compressor
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import WeightView, view
from compresskit.errors import ModelError
from compresskit.methods.quantization._shared import quantization_detail, refuse_integer_site, weight_bytes
from compresskit.nn.bitsandbytes_layers import BitsandbytesNf4Linear
from compresskit.nn.fp8 import Float8Linear
from compresskit.nn.lookup import LookupLinear
from compresskit.nn.packed import PackedLinear
from compresskit.nn.residual import ResidualLinear
from compresskit.numerics.finite import all_finite
from compresskit.numerics.packing import packed_bytes
from compresskit.numerics.rtn import Codes, scale_type

WHOLE_BITS = 16
"""Bits from which on a weight is left as it is."""


def _storable(bits: int) -> int:
    if 8 < bits < WHOLE_BITS:
        raise ValueError(f"weights take 2 to 8 bits, or {WHOLE_BITS} to be left as they are, not {bits}")
    return bits


Bits = Annotated[int, Field(ge=2, le=32), AfterValidator(_storable)]
Zeros = Literal["none", "integer", "float"]


class WeightOnly(Compressor):
    """Options and refusals of the methods whose result is a ``PackedLinear``."""

    bits: Bits = Field(4, description="bits of a weight, 2 to 8; 16 and more leave it as it is")
    per: Literal["group", "channel"] = Field("group", description="what shares a scale: a group of a row, or a row")
    group: int = Field(32, ge=2, description="columns of a group; it must divide the columns of the matrix")

    def nothing_asked(self) -> str | None:
        """16 bits and more."""
        return f"bits {self.bits} leaves every weight as it is" if self.bits >= WHOLE_BITS else None

    @property
    def columns(self) -> int | None:
        """Columns that share a scale, None for a row."""
        return self.group if self.per == "group" else None

    def zeros(self) -> Zeros:
        """The kind of zero points that the layers get."""
        return "integer"

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        if self.nothing_asked():
            return None
        return refuse_packed_site(model, site, self.columns)

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Exact: codes, scales and zero points are counted."""
        if self.nothing_asked():
            return 0
        return sum(self._saved(view(model, site.path)) for site in sites)

    def _saved(self, plain: WeightView) -> int:
        return weight_bytes(plain) - stored_bytes(plain, self.bits, self.columns, self.zeros())


class SymmetricOrNot(WeightOnly):
    """With the choice whether there are zero points."""

    symmetric: bool = Field(False, description="no zero points: a little smaller, a larger error")

    def zeros(self) -> Zeros:
        return "none" if self.symmetric else "integer"


def refuse_packed_site(model: PreTrainedModel, site: Site, group: int | None) -> str | None:
    """Why the matrix of ``site`` can't be packed, or None."""
    columns = view(model, site.path).in_features
    if group is not None and columns % group:
        return f"its {columns} columns don't divide into groups of {group}"
    return refuse_integer_site(model, site)


def stored_bytes(plain: WeightView, bits: int, group: int | None, zeros: Zeros = "integer", whole: bool = False) -> int:
    """Bytes of codes, scales and zero points."""
    rows, columns = plain.weight.shape
    groups = 1 if group is None else columns // group
    scale = scale_type(plain.weight, bits).itemsize
    scales = scale * groups * (1 if whole else rows)
    zero = (
        0 if zeros == "none" else packed_bytes(groups, bits) * (1 if whole else rows) if zeros == "integer" else scales
    )
    return rows * packed_bytes(columns, bits) + scales + zero


def finite_weight(plain: WeightView) -> Tensor:
    """The matrix (O, I) in float32.

    Raises:
        ModelError: CK-M054, if it isn't finite.
    """
    weight = plain.weight.detach().float()
    if not all_finite(weight):
        raise ModelError(
            "CK-M054",
            "the matrix has weights that aren't finite and can't be quantized",
            where=plain.path,
            why="NaN, infinity, or a value beyond float32",
            fix="repair the checkpoint, or leave this matrix out with `ignore`",
        )
    return weight


def install(
    model: PreTrainedModel,
    path: str,
    codes: Codes,
    context: Context,
    input_scale: Tensor | None = None,
    **more: Any,
) -> None:
    """Put a ``PackedLinear`` of ``codes`` at ``path``, and its row into the ledger.

    Args:
        input_scale: (I,) that the inputs are multiplied by.
        more: added to the row.
    """
    plain = view(model, path)
    layer = PackedLinear.from_codes(codes, plain.bias, plain.weight.dtype, input_scale)
    install_layer(model, path, layer, context, bits=codes.bits, **more)


def install_layer(
    model: PreTrainedModel,
    path: str,
    layer: PackedLinear | LookupLinear | BitsandbytesNf4Linear | Float8Linear | ResidualLinear,
    context: Context,
    **more: Any,
) -> None:
    """Put ``layer`` at ``path``, and its row into the ledger."""
    plain = view(model, path)
    if plain.bias_parameter is not None:
        # The very parameter: the bias of BERT's head is that of `predictions` too.
        layer.bias = plain.bias_parameter
    bias = 0 if layer.bias is None else layer.bias.numel() * layer.bias.element_size()
    detail = quantization_detail(plain.weight, layer.weight, layer.stored_bytes() - bias)
    context.details[path] = {**more, **detail}
    surgery.replace(model, path, layer)
