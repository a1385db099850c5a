"""Exports take seconds each: every module of tests makes its own once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from compresskit.core.surgery import replace
from compresskit.core.weights import view
from compresskit.export import parity
from compresskit.export.clean import clean
from compresskit.export.graph import Task
from compresskit.export.names import name_all
from compresskit.export.trace import trace
from compresskit.nn.int8 import Activations, Int8Linear


def export_module(module: nn.Module, sample: dict[str, Tensor], path: Path, opset: int = 23) -> Task:
    """Write a module that takes and gives tensors by name; their first axes vary, the last doesn't."""
    module.config = None
    with torch.no_grad():
        outputs = module(**sample)

    def axes(tensor: Tensor) -> tuple[str | None, ...]:
        return (*("batch", "sequence")[: tensor.dim() - 1], None)

    inputs = {
        name: axes(tensor) if tensor.is_floating_point() else ("batch", "sequence") for name, tensor in sample.items()
    }
    task = Task("layers", module, sample, inputs, {name: axes(tensor) for name, tensor in outputs.items()})
    program = trace(task, opset)
    clean(program)
    name_all(program, task)
    import onnx_ir

    path.parent.mkdir(parents=True, exist_ok=True)
    onnx_ir.save(program, path)
    return task


def run(path: Path, batch: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The file's outputs by name, at full optimization."""
    opened = parity.session(path)
    names = [output.name for output in opened.get_outputs()]
    wanted = {each.name for each in opened.get_inputs()}
    feed = {name: tensor.numpy() for name, tensor in batch.items() if name in wanted}
    return dict(zip(names, opened.run(names, feed), strict=True))


def to_int8(model: nn.Module, activations: Activations, part: str = "") -> None:
    """Replace every matrix but embeddings and heads whose path contains ``part``."""
    for path, module in list(model.named_modules()):
        if part in path and isinstance(module, (nn.Linear, Conv1D)) and "lm_head" not in path:
            matrix = view(model, path)
            replace(model, path, Int8Linear.from_weight(matrix.weight.detach(), matrix.bias, activations))
