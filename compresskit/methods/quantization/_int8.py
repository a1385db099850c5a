"""The layer that int8 and smoothquant put in the place of a matrix."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from compresskit.core import surgery
from compresskit.core.context import Context
from compresskit.core.weights import WeightView, view
from compresskit.methods.quantization._packed import finite_weight
from compresskit.methods.quantization._shared import quantization_detail
from compresskit.nn.int8 import Activations, Int8Linear

_SCALE_BYTES = 4


def install_int8(model: PreTrainedModel, path: str, activations: Activations, context: Context, **more: Any) -> None:
    """Put an ``Int8Linear`` at ``path``, and its row with ``more`` into the ledger.

    Raises:
        ModelError: CK-M054, if the matrix isn't finite.
    """
    plain = view(model, path)
    finite_weight(plain)
    layer = Int8Linear.from_weight(plain.weight, plain.bias, activations)
    if plain.bias_parameter is not None:
        # The very parameter: the bias of BERT's head is that of `predictions` too.
        layer.bias = plain.bias_parameter
    context.details[path] = {**more, **quantization_detail(plain.weight, layer.weight, int8_bytes(plain))}
    surgery.replace(model, path, layer)


def int8_bytes(plain: WeightView) -> int:
    """Bytes of the codes and of a scale a row."""
    return plain.weight.numel() + _SCALE_BYTES * plain.out_features
