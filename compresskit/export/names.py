"""Names in the file: inputs, outputs, dimensions and weights, as a reader expects them."""

from __future__ import annotations

from typing import Any

from compresskit.errors import ExportError
from compresskit.export.graph import Dimensions, Task

_PREFIX = "model."


def name_all(program: Any, task: Task) -> None:
    """Rename in place.

    Raises:
        ExportError: CK-X003, the graph has other inputs or outputs than the task; CK-X004, a dimension that must vary
            became fixed.
    """
    graph = program.graph
    graph.name = task.name
    _name_values(graph.inputs, [*task.sample], [*task.inputs], task, "inputs")
    traced = {new: old for old, new in task.renamed.items()}
    _name_values(graph.outputs, [traced.get(name, name) for name in task.outputs], [*task.outputs], task, "outputs")
    for values, dimensions in ((graph.inputs, task.inputs), (graph.outputs, task.outputs)):
        for value in values:
            _name_dimensions(value, dimensions[value.name], task)
    _name_weights(graph)


def _name_values(values: Any, traced: list[str], wanted: list[str], task: Task, what: str) -> None:
    found = [value.name for value in values]
    if found != traced:
        raise ExportError(
            "CK-X003",
            f"the {what} of the graph {task.name!r} are {', '.join(found)} instead of {', '.join(traced)}",
            why="the exporter left out what the outputs don't depend on, or added some",
            fix="this is a mistake of ours: please report it with the model's name",
        )
    for value, name in zip(values, wanted, strict=True):
        value.name = name


def _name_dimensions(value: Any, dimensions: Dimensions, task: Task) -> None:
    import onnx_ir

    known = list(value.shape)
    for axis, (size, name) in enumerate(zip(known, dimensions, strict=True)):
        if name is not None and isinstance(size, int):
            raise ExportError(
                "CK-X004",
                f"dimension {name!r} of {value.name!r} became {size} for all inputs",
                where=f"graph {task.name}",
                why="a layer of the model branches on it, so that the traced graph holds for one size only",
                fix="this is a mistake of ours or of the model's code: please report it with the model's name",
            )
        known[axis] = size if name is None else name
    value.shape = onnx_ir.Shape(known)


def _name_weights(graph: Any) -> None:
    """Weights by their names in the checkpoint, where the exporter kept them; the rest is numbered."""
    weights = list(graph.initializers.values())
    taken = {value.name for value in (*graph.inputs, *graph.outputs)}
    for value in weights:
        name = value.name.removeprefix(_PREFIX)
        if name != value.name and name not in taken and name not in graph.initializers:
            value.name = name
