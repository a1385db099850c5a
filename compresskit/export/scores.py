"""Products of queries and keys in int8, for runtimes that compute what stands between two DequantizeLinear.

A layer with fixed scales whose results are queries or keys quantizes them with a scale of their own. Runtimes look for
that at the product itself: it is put there, behind the splitting of heads and the scaling. Where the way to a product
is another one (rotary positions, a cache), the results stay as they were computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class _Origin:
    """How a factor of a product was quantized, in numbers of that factor: its scale, and the value of its zero."""

    scale: float
    zero: Any


def quantize_scores(graph: Any) -> None:
    """Move the quantization of queries and keys in ``graph``, an ``onnx_ir.Graph``, to their products, or drop it."""
    products = []
    for node in graph:
        if node.op_type == "MatMul":
            queries, keys = (_origin(value) for value in node.inputs)
            if queries is not None and keys is not None:
                products.append((node, (queries, keys)))
    for node in list(graph):
        if node.op_type == "QuantizeLinear" and _is_result(node):
            _drop(graph, node)
    for node, origins in products:
        for position, origin in enumerate(origins):
            _quantize_input(graph, node, position, origin)


def _is_result(quantize: Any) -> bool:
    """Whether it is a layer's result: what layers read is quantized as uint8."""
    zero = quantize.inputs[2].const_value if len(quantize.inputs) > 2 else None
    return zero is not None and zero.dtype.name == "INT8"


def _origin(value: Any) -> _Origin | None:
    factor = 1.0
    while (maker := value.producer()) is not None:
        if maker.op_type in ("Reshape", "Transpose"):
            value = maker.inputs[0]
        elif maker.op_type == "Mul" and (constant := _constant(maker)) is not None:
            place, number = constant
            factor, value = factor * abs(number), maker.inputs[1 - place]
        elif maker.op_type == "DequantizeLinear":
            quantize = maker.inputs[0].producer()
            if quantize is None or not _is_result(quantize):
                return None
            _, scale, zero = quantize.inputs
            return _Origin(factor * float(scale.const_value.numpy()), zero)
        else:
            return None
    return None


def _constant(multiplication: Any) -> tuple[int, float] | None:
    """Which input is a single constant number, and the number."""
    for place, value in enumerate(multiplication.inputs):
        if value.const_value is not None and value.const_value.size == 1:
            return place, float(value.const_value.numpy().reshape(()))
    return None


def _drop(graph: Any, quantize: Any) -> None:
    """Let what reads its numbers, dequantized, read what it quantizes."""
    import onnx_ir

    for use in list(quantize.outputs[0].uses()):
        onnx_ir.convenience.replace_all_uses_with(use.node.outputs[0], quantize.inputs[0])
        graph.remove(use.node, safe=True)
    graph.remove(quantize, safe=True)


def _quantize_input(graph: Any, node: Any, position: int, origin: _Origin) -> None:
    """Put QuantizeLinear and DequantizeLinear in front of an input of ``node``."""
    import onnx_ir

    source = node.inputs[position]
    tensor = onnx_ir.tensor(np.float32(origin.scale), name=f"{source.name}.scale")
    scale = onnx_ir.Value(
        name=tensor.name, shape=onnx_ir.Shape(()), type=onnx_ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(scale)
    quantize = onnx_ir.Node("", "QuantizeLinear", (source, scale, origin.zero))
    dequantize = onnx_ir.Node("", "DequantizeLinear", (quantize.outputs[0], scale, origin.zero))
    graph.insert_before(node, (quantize, dequantize))
    node.replace_input_with(position, dequantize.outputs[0])
