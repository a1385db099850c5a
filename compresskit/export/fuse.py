"""Rewrites that make a traced encoder faster in ONNX Runtime and change no attended value.

The exporter splits heads before ``Attention`` and joins them after it, which the operator does itself for rows of
(B, T, heads x D); and it guards against rows without any attended token, whose outputs nobody reads. Where attention is
written out, it transposes keys in matrices of all heads, twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_SPLIT_HEADS = [0, 2, 1, 3]


def fuse(graph: Any) -> None:
    """Apply all rewrites to ``graph``, an ``onnx_ir.Graph`` that still has its shapes."""
    for node in list(graph):
        if node.op_type == "Attention":
            _drop_guard(graph, node)
            _attend_in_rows(graph, node)
        elif node.op_type == "Reshape":
            _transpose_once(graph, node)


def _transpose_once(graph: Any, node: Any) -> None:
    """(B, T, heads, D) to (B, heads, T, D), (B x heads, T, D), (B x heads, D, T), (B, heads, D, T): one Transpose."""
    import onnx_ir

    turn = _maker(node, "Transpose")
    merge = _maker(turn, "Reshape")
    split = _maker(merge, "Transpose")
    if split is None or _rank(split.outputs[0]) != 4 or _rank(node.outputs[0]) not in (4, None):
        return
    if [list(each.attributes.get_ints("perm", [])) for each in (split, turn)] != [_SPLIT_HEADS, [0, 2, 1]]:
        return
    whole = onnx_ir.Node("", "Transpose", split.inputs, {"perm": onnx_ir.AttrInt64s("perm", [0, 2, 3, 1])})
    whole.outputs[0].shape, whole.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    graph.insert_before(node, whole)
    onnx_ir.convenience.replace_all_uses_with(node.outputs[0], whole.outputs[0])


def _drop_guard(graph: Any, attention: Any) -> None:
    """``Where(no token, 0, attention)`` becomes ``attention``, where a finite mask keeps such rows finite anyway."""
    import onnx_ir

    users = _users(attention.outputs[0])
    if len(users) != 1 or users[0].op_type != "Where" or users[0].inputs[2] is not attention.outputs[0]:
        return
    zero = users[0].inputs[1].const_value
    if zero is None or np.any(zero.numpy()) or not _is_finite_mask(attention):
        return
    onnx_ir.convenience.replace_all_uses_with(users[0].outputs[0], attention.outputs[0])
    graph.remove(users[0], safe=True)


def _is_finite_mask(attention: Any) -> bool:
    """Whether the mask is a product with a finite constant."""
    mask = attention.inputs[3] if len(attention.inputs) > 3 else None
    maker = mask.producer() if mask is not None else None
    if maker is None or maker.op_type != "Mul":
        return False
    constants = [value.const_value for value in maker.inputs if value is not None and value.const_value is not None]
    return bool(constants) and all(np.isfinite(constant.numpy()).all() for constant in constants)


def _attend_in_rows(graph: Any, attention: Any) -> None:
    """Queries, keys, values and the result as (B, T, heads x D): four transpositions and reshapes less."""
    import onnx_ir

    if len(attention.inputs) > 4 or len([value for value in attention.outputs if value.uses()]) != 1:
        return
    splits = [_split_of(value) for value in attention.inputs[:3]]
    heads = [_heads(value) for value in attention.inputs[:3]]
    join = _join_of(attention.outputs[0])
    queries, keys, values = heads
    if None in splits or join is None or queries is None or keys is None or keys != values:
        return
    for position, split in enumerate(splits):
        attention.replace_input_with(position, split)
    attention.attributes["q_num_heads"] = onnx_ir.AttrInt64("q_num_heads", queries)
    attention.attributes["kv_num_heads"] = onnx_ir.AttrInt64("kv_num_heads", keys)
    attention.outputs[0].shape = None
    onnx_ir.convenience.replace_all_uses_with(join.outputs[0], attention.outputs[0])


def _split_of(value: Any) -> Any:
    """The rows (B, T, heads x D) of which ``value`` (B, heads, T, D) was made by Reshape and Transpose, or None."""
    turn = value.producer()
    if turn is None or turn.op_type != "Transpose" or list(turn.attributes.get_ints("perm", [])) != _SPLIT_HEADS:
        return None
    shape = turn.inputs[0].producer()
    if shape is None or shape.op_type != "Reshape" or _rank(turn.inputs[0]) != 4 or _rank(shape.inputs[0]) != 3:
        return None
    return shape.inputs[0]


def _join_of(value: Any) -> Any:
    """The Reshape to (B, T, heads x D) that alone reads ``value`` (B, heads, T, D), transposed; or None."""
    users = _users(value)
    if len(users) != 1 or users[0].op_type != "Transpose":
        return None
    if list(users[0].attributes.get_ints("perm", [])) != _SPLIT_HEADS:
        return None
    after = _users(users[0].outputs[0])
    joins = len(after) == 1 and after[0].op_type == "Reshape" and _rank(after[0].outputs[0]) == 3
    return after[0] if joins else None


def _heads(value: Any) -> int | None:
    size = value.shape[1] if value.shape is not None and len(value.shape) == 4 else None
    return size if isinstance(size, int) else None


def _rank(value: Any) -> int | None:
    return None if value.shape is None else len(value.shape)


def _maker(node: Any, operator: str) -> Any:
    """The node that makes the first input of ``node``, or None if there is none, or it is another operator."""
    maker = None if node is None else node.inputs[0].producer()
    return maker if maker is not None and maker.op_type == operator else None


def _users(value: Any) -> list[Any]:
    return [use.node for use in value.uses()]
