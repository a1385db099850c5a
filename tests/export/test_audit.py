"""The audit finds codes that are missing, doubled or held as float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from compresskit.errors import ExportError
from compresskit.export.audit import audit
from compresskit.export.graph import Task
from compresskit.nn.int8 import Int8Linear


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    holder = nn.Module()
    holder.dense = Int8Linear.from_weight(torch.randn(40, 32), None)
    holder.dense.weight_codes.data[0] = 0  # as the padding row of a table is
    return holder


def write(folder: Path, **weights: np.ndarray) -> Path:
    tensors = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in weights.items()]
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    same = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [same], tensors)
    onnx.save(helper.make_model(graph), folder / "made.onnx")
    return folder / "made.onnx"


def test_codes_in_either_orientation(tmp_path: Path, model: nn.Module) -> None:
    codes = model.dense.weight_codes.numpy()
    for array in (codes, codes.T):
        found = audit(write(tmp_path, codes=array, bias=np.ones(40, np.float32)), model)
        assert (found.integer_layers, found.tables, found.integer_bytes, found.float_bytes) == (1, 0, 1280, 160)
        assert found.operators == {"Identity": 1}


def test_faults_are_found(tmp_path: Path, model: nn.Module) -> None:
    codes = model.dense.weight_codes.numpy()
    wrong = codes.copy()
    wrong[3, 4] += 1
    values = model.dense.weight.numpy()
    for weights in (
        {"codes": wrong},
        {"codes": codes.astype(np.int32)},
        {"codes": codes, "float": values},
        {"codes": codes, "float": values.T},
        {"codes": codes, "float": codes.astype(np.float32)},
        {"codes": codes, "again": codes},
    ):
        with pytest.raises(ExportError) as caught:
            audit(write(tmp_path, **weights), model)
        assert caught.value.code == "CK-X008"


class _Pooled(nn.Module):
    """Calls both layers and gives what the first one computes; ``pooled``: the second one's too."""

    def __init__(self, dense: nn.Module, pooled: bool) -> None:
        super().__init__()
        self.dense, self.pooler, self.pooled = dense, Int8Linear.from_weight(torch.randn(24, 40), None), pooled

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.dense(x)
        pooler = self.pooler(hidden)
        return {"hidden": hidden, "pooler": pooler} if self.pooled else {"hidden": hidden}


@pytest.mark.parametrize("pooled", [False, True])
def test_only_layers_that_outputs_depend_on_must_be_there(tmp_path: Path, model: nn.Module, pooled: bool) -> None:
    module = _Pooled(model.dense, pooled)
    path = write(tmp_path, codes=model.dense.weight_codes.numpy())
    task = Task("model", module, {"x": torch.randn(2, 32)}, {"x": ("batch", None)}, {"hidden": ("batch", None)})
    if not pooled:
        assert audit(path, module, task).integer_layers == 1
        return
    with pytest.raises(ExportError) as caught:
        audit(path, module, task)
    assert caught.value.code == "CK-X008"
    assert "pooler" in str(caught.value)
