"""Is what is integer in the model integer in the file, stored once, and nowhere else as float?"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from compresskit.errors import ExportError
from compresskit.export.graph import Task
from compresskit.nn.bitsandbytes_layers import BitsandbytesNf4Linear
from compresskit.nn.embedding import QuantizedEmbedding, QuantizedHead
from compresskit.nn.fp8 import Float8Linear
from compresskit.nn.int8 import Int8Linear
from compresskit.nn.lookup import LookupLinear
from compresskit.nn.packed import PackedLinear
from compresskit.nn.product import ProductEmbedding
from compresskit.nn.static_int8 import StaticInt8Linear

INTEGER_LAYERS = (Int8Linear, StaticInt8Linear)
TABLES = (QuantizedEmbedding, QuantizedHead)

_SMALL = 1024
"""Bytes below which a tensor stored twice is of no interest."""


@dataclass(frozen=True)
class Audit:
    """What the file holds.

    Args:
        integer_layers: int8 linear layers whose codes are in the file. tables: quantized tables likewise.
        integer_bytes, float_bytes: of integer and float weights in the file.
        weights: number of weights. operators: how many nodes of each kind.
    """

    integer_layers: int
    tables: int
    integer_bytes: int
    float_bytes: int
    weights: int
    operators: dict[str, int]


def audit(path: Path, model: nn.Module, task: Task | None = None) -> Audit:
    """Compare the weights of the file ``path`` with the layers of ``model``.

    Args:
        task: what was traced; layers that no output of it depends on, such as a pooler, need not be in the file.

    Raises:
        ExportError: CK-X008, codes are missing, held as float too, or a weight is stored twice.
    """
    import onnx

    proto = onnx.load(str(path))
    arrays = {weight.name: _array(onnx.numpy_helper.to_array(weight)) for weight in proto.graph.initializer}
    stored: dict[str, str] = {}
    for name, array in arrays.items():
        key = _digest(array)
        if key in stored and array.nbytes > _SMALL:
            raise _refused(f"{name} and {stored[key]} are the same weight, stored twice", path)
        stored[key] = name
    floats = [array for array in arrays.values() if array.dtype.kind == "f" and array.nbytes > _SMALL]
    layers = tables = 0
    for name, module in model.named_modules():
        codes = _codes_of(module)
        if codes is None:
            continue
        if not _holds(codes, stored):
            if task is not None and not reaches_outputs(task, module):
                continue
            raise _refused(f"the {str(codes.dtype).removeprefix('torch.')} codes of {name} are not in the file", path)
        layers += isinstance(module, INTEGER_LAYERS)
        tables += isinstance(module, TABLES)
        _refuse_float(name, (cast(Tensor, module.weight), codes), floats, path)
    sizes = Counter[str]()
    for array in arrays.values():
        sizes["float" if array.dtype.kind == "f" else "integer"] += array.nbytes
    operators = dict(sorted(Counter(node.op_type for node in proto.graph.node).items()))
    return Audit(layers, tables, sizes["integer"], sizes["float"], len(arrays), operators)


def _array(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``array``; 8-bit floats, which numpy itself doesn't have, as their bytes."""
    return array.view(np.uint8) if array.dtype.name.startswith("float8") else array


def _digest(array: np.ndarray[Any, Any]) -> str:
    content = np.ascontiguousarray(array)
    return hashlib.sha256(f"{content.dtype}{content.shape}".encode() + content.tobytes()).hexdigest()


def _codes_of(module: nn.Module) -> Tensor | None:
    """The integer codes of a layer that has any."""
    if isinstance(module, INTEGER_LAYERS):
        return module.weight_codes
    if isinstance(module, Float8Linear):
        return module.codes.view(torch.uint8)
    if isinstance(module, (PackedLinear, LookupLinear, BitsandbytesNf4Linear, ProductEmbedding, *TABLES)):
        return module.codes
    return None


def _holds(codes: Tensor, stored: dict[str, str]) -> bool:
    array = codes.detach().cpu().numpy()
    return _digest(array) in stored or _digest(array.T) in stored


def reaches_outputs(task: Task, module: nn.Module) -> bool:
    """Whether an output of ``task`` depends on what ``module`` gives: NaN in its place is seen there."""
    hook = module.register_forward_hook(lambda layer, inputs, output: torch.full_like(output, torch.nan))
    try:
        found = task.run(task.sample)
    finally:
        hook.remove()
    return any(bool(tensor.isnan().any()) for tensor in found.values())


def _refuse_float(name: str, matrices: tuple[Tensor, ...], floats: list[np.ndarray[Any, Any]], path: Path) -> None:
    """No float weight of the file may be one of ``matrices`` (a weight (O, I), its codes), or its transpose."""
    for matrix in matrices:
        shapes = (tuple(matrix.shape), tuple(matrix.shape)[::-1])
        alike = [array for array in floats if array.shape in shapes]
        if not alike:
            continue
        values = matrix.detach().float().cpu()
        if bool(values.any()) and any(
            _equal(values, torch.tensor(turned).float()) for array in alike for turned in (array, array.T)
        ):
            raise _refused(f"{name} is in the file as float too", path)


def _equal(values: Tensor, other: Tensor) -> bool:
    """Whether all are alike but for rounding; a look at some rows, of which the first may be zeros, comes first."""
    if values.shape != other.shape:
        return False
    few = slice(None, None, max(1, len(values) // 16))
    return all(torch.allclose(values[part], other[part], rtol=1e-3, atol=1e-6) for part in (few, slice(None)))


def _refused(what: str, path: Path) -> ExportError:
    return ExportError(
        "CK-X008",
        what,
        where=path.name,
        why="the exporter changed the weights, so the file is larger than the model or computes something else",
        fix="please report it with the model's name. Nothing was written.",
    )
