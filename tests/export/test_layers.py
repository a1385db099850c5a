"""Each layer of compresskit, by itself, in ONNX Runtime at full optimization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from compresskit.core.weights import view
from compresskit.export.trace import lowering
from compresskit.nn.embedding import QuantizedEmbedding, QuantizedHead
from compresskit.nn.int8 import Int8Linear
from compresskit.nn.low_rank import LowRankLinear
from tests.export.conftest import export_module, run

IN, OUT, ROWS = 96, 48, 200


class Layers(nn.Module):
    """Every layer on the inputs x (B, T, I), y (B, I), wide (B, T, I) and ids (B, T)."""

    def __init__(self) -> None:
        super().__init__()
        weight, bias = torch.randn(OUT, IN), torch.randn(OUT)
        conv = nn.Module()
        conv.inner = Conv1D(OUT, IN)
        matrix = view(conv, "inner")
        self.token = Int8Linear.from_weight(weight, bias)
        self.token_twin = Int8Linear.from_weight(torch.randn(OUT, IN), bias)
        self.bare = Int8Linear.from_weight(weight + 1, None)
        self.tensor = Int8Linear.from_weight(torch.randn(OUT, IN), bias, "tensor")
        self.conv = Int8Linear.from_weight(matrix.weight.detach(), matrix.bias)
        table = nn.Embedding(ROWS, IN)
        self.eight = QuantizedEmbedding.from_table(table, 8)
        self.four = QuantizedEmbedding.from_table(table, 4, 32)
        self.head = QuantizedHead(ROWS, IN, 4, 32)
        self.head.fill(table.weight.detach())
        self.low = LowRankLinear.from_factors(torch.randn(OUT, 8), torch.randn(8, IN), bias)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor) -> dict[str, Tensor]:
        return {
            "token": self.token(x),
            "token_twin": self.token_twin(x),
            "token_rows": self.token(y),
            "bare": self.bare(x),
            "tensor": self.tensor(x),
            "tensor_rows": self.tensor(y),
            "conv": self.conv(x),
            "eight": self.eight(ids),
            "four": self.four(ids),
            "head": self.head(x),
            "low": self.low(x),
        }


def batch(rows: int, length: int, seed: int = 0, spread: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, length, IN, generator=generator) * spread
    return {"x": x, "y": x[:, 0] * 3 + 1, "ids": torch.randint(0, ROWS, (rows, length), generator=generator)}


@pytest.fixture(scope="module")
def layers() -> Layers:
    torch.manual_seed(5)
    return Layers().eval()


@pytest.fixture(scope="module")
def exported(layers: Layers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layers") / "layers.onnx"
    export_module(layers, batch(2, 5), path)
    return path


def zeros_and_spikes() -> dict[str, Tensor]:
    made = batch(3, 7, seed=3)
    made["x"][0, 0], made["x"][1, 1, 4], made["x"][2] = 0, 300.0, made["x"][2].abs()
    return made


@pytest.mark.parametrize(
    "made", [batch(1, 1), batch(2, 5, 1), batch(4, 33, 2, 40.0), zeros_and_spikes()], ids=["one", "few", "wide", "odd"]
)
def test_layers_agree(layers: Layers, exported: Path, made: dict[str, Tensor]) -> None:
    with torch.no_grad():
        expected = layers(**made)
    found = run(exported, made)
    for name, tensor in expected.items():
        reference = tensor.numpy()
        difference = np.abs(found[name] - reference) / max(1.0, np.abs(reference).max())
        # A tie at one half may round either way: one step of one input then, in few outputs.
        assert np.mean(difference > 1e-5) <= (
            0.01 if isinstance(getattr(layers, name.removesuffix("_rows"), None), Int8Linear) else 0
        ), name
        assert difference.max() <= 5e-3, name


def test_codes_are_stored_once_and_as_integers(layers: Layers, exported: Path) -> None:
    weights = onnx.load(exported).graph.initializer
    int8 = [weight for weight in weights if weight.data_type == onnx.TensorProto.INT8]
    sizes = sorted(int(np.prod(weight.dims)) for weight in int8)
    assert sizes == sorted([*[IN * OUT] * 5, ROWS * IN])
    assert [
        int(np.prod(w.dims)) for w in weights if w.data_type == onnx.TensorProto.UINT8 and np.prod(w.dims) > ROWS * 4
    ] == [ROWS * IN // 2]
    floats = [weight for weight in weights if weight.data_type == onnx.TensorProto.FLOAT]
    assert max(int(np.prod(weight.dims)) for weight in floats) <= max(8 * IN, ROWS)


def test_layers_on_one_input_share_its_codes(exported: Path) -> None:
    nodes = onnx.load(exported).graph.node
    products = [node for node in nodes if node.op_type == "MatMulInteger"]
    assert len(products) == 7
    # token, token_twin, bare and conv read the same codes of x; token_rows those of y; tensor and tensor_rows theirs.
    assert len({node.input[0] for node in products}) == 4


def test_no_transposition_of_codes_is_left(exported: Path) -> None:
    graph = onnx.load(exported).graph
    integers = {w.name for w in graph.initializer if w.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)}
    assert not [node for node in graph.node if node.op_type == "Transpose" and set(node.input) & integers]


def test_nothing_tells_of_the_machine(exported: Path) -> None:
    content = exported.read_bytes()
    for trace_of in (b"site-packages", b"/work", b"stack_trace", b".py"):
        assert trace_of not in content
    assert str(Path(__file__).parents[2]).encode() not in content


def test_portable_profile_multiplies_floats(layers: Layers, tmp_path: Path) -> None:
    with lowering("portable"):
        export_module(layers, batch(2, 5), tmp_path / "portable.onnx", 21)
        made = batch(3, 11, 4)
        with torch.no_grad():
            expected = layers(**made)
    found = run(tmp_path / "portable.onnx", made)
    for name, tensor in expected.items():
        reference = tensor.numpy()
        assert np.abs(found[name] - reference).max() <= 1e-5 * max(1.0, np.abs(reference).max()), name
    kinds = {node.op_type for node in onnx.load(tmp_path / "portable.onnx").graph.node}
    assert not kinds & {"MatMulInteger", "DynamicQuantizeLinear", "QuantizeLinear"}
    weights = onnx.load(tmp_path / "portable.onnx").graph.initializer
    assert sum(weight.data_type == onnx.TensorProto.INT8 and len(weight.dims) == 2 for weight in weights) == 6
