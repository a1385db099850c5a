"""Makes a traced graph small, deterministic and free of traces of the machine that made it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from compresskit import __version__
from compresskit.export.fuse import fuse
from compresskit.export.scores import quantize_scores

PRODUCER = "compresskit"
_INTEGERS = ("INT8", "UINT8")
_INT32, _INT64 = 6, 7
"""Numbers of the types in ONNX."""


def clean(program: Any) -> None:
    """Clean ``program``, an ``onnx_ir.Model``, in place."""
    from onnx_ir.passes.common import (
        InlinePass,
        RemoveUnusedFunctionsPass,
        RemoveUnusedNodesPass,
        RemoveUnusedOpsetsPass,
    )

    InlinePass()(program)
    fold_sums_of_codes(program.graph)
    fold_transposed_codes(program.graph)
    fuse(program.graph)
    quantize_scores(program.graph)
    RemoveUnusedNodesPass()(program)
    store_once(program.graph)
    RemoveUnusedFunctionsPass()(program)
    RemoveUnusedOpsetsPass()(program)
    strip(program)


def fold_sums_of_codes(graph: Any) -> None:
    """Compute the sums of integer weights' rows now: else the codes would be stored in both orientations."""
    for node in list(graph):
        cast = node.inputs[0].producer() if node.op_type == "ReduceSum" and node.inputs[0] is not None else None
        if cast is None or cast.op_type != "Cast":
            continue
        source = cast.inputs[0]
        axes = node.inputs[1] if len(node.inputs) > 1 else None
        if source is None or axes is None or axes.const_value is None or not _is_codes(source):
            continue
        axis = tuple(int(number) for number in axes.const_value.numpy().reshape(-1))
        kept = bool(node.attributes.get_int("keepdims", 1))
        kind = cast.attributes["to"].as_int()
        if kind not in (_INT32, _INT64):
            continue
        summed = source.const_value.numpy().sum(axis, dtype=np.int64 if kind == _INT64 else np.int32, keepdims=kept)
        _replace_by_weight(graph, node, f"{source.name}.sum", np.ascontiguousarray(summed))


def _is_codes(value: Any) -> bool:
    return (
        value.is_initializer()
        and value.const_value is not None
        and value.dtype is not None
        and value.dtype.name in _INTEGERS
    )


def _replace_by_weight(graph: Any, node: Any, name: str, array: Any) -> None:
    import onnx_ir

    tensor = onnx_ir.tensor(array, name=name)
    value = onnx_ir.Value(
        name=name, shape=onnx_ir.Shape(array.shape), type=onnx_ir.TensorType(tensor.dtype), const_value=tensor
    )
    if name in graph.initializers:
        value = graph.initializers[name]
    else:
        graph.register_initializer(value)
    onnx_ir.convenience.replace_all_uses_with(node.outputs[0], value)
    graph.remove(node, safe=True)


def fold_transposed_codes(graph: Any) -> None:
    """Store integer weights the way the products read them, instead of transposing them in every session."""
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or not _is_codes(source):
            continue
        order = node.attributes.get_ints("perm", None) if "perm" in node.attributes else None
        turned = np.ascontiguousarray(np.transpose(source.const_value.numpy(), order))
        _replace_by_weight(graph, node, f"{source.name}.T", turned)


def store_once(graph: Any) -> None:
    """Let equal weights be one weight: layers that share parameters, tables that a head is tied to."""
    import onnx_ir

    first: dict[tuple[str, tuple[int, ...], bytes], Any] = {}
    outputs = {id(value) for value in graph.outputs}
    for name, value in list(graph.initializers.items()):
        if value.const_value is None or id(value) in outputs:
            continue
        array = value.const_value.numpy()
        key = (str(value.dtype), array.shape, hashlib.sha256(array.tobytes()).digest())
        if key in first:
            onnx_ir.convenience.replace_all_uses_with(value, first[key])
            del graph.initializers[name]
        else:
            first[key] = value


def strip(program: Any) -> None:
    """Drop notes of the exporter (source lines, paths), shapes of intermediate values, and its name and version."""
    program.producer_name, program.producer_version = PRODUCER, __version__
    program.domain = program.doc_string = None
    program.metadata_props.clear()
    graph = program.graph
    _forget(graph)
    kept = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for value in (*graph.inputs, *graph.initializers.values()):
        _forget(value)
        if value.const_value is not None:
            _forget(value.const_value)
    for inner in program.graphs():
        _forget(inner)
    for number, node in enumerate(graph.all_nodes()):
        _forget(node)
        node.name = f"{node.op_type}_{number}"
        for value in node.outputs:
            _forget(value)
            if id(value) not in kept and node.graph is graph:
                value.shape = value.type = None


def _forget(thing: Any) -> None:
    thing.doc_string = None
    thing.metadata_props.clear()
