"""The rewrites for ONNX Runtime: what is gone from the graph, and that outputs are the model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from compresskit.export import ExportReport, export_onnx
from compresskit.nn.static_int8 import StaticInt8Linear
from tests import models
from tests.export.conftest import run
from tests.methods.quantization.test_static_int8 import quantized


@pytest.fixture(scope="module", params=["fast", "static"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ExportReport]:
    model, _, _ = quantized(models.tiny("bert"), "bert")
    output = tmp_path_factory.mktemp(request.param) / "model.onnx"
    return model, export_onnx(model, output, tokenizer=models.tokenizer(), profile=request.param)


def test_operators_of_the_profile(made: tuple[Any, ExportReport]) -> None:
    model, report = made
    layers = sum(isinstance(module, StaticInt8Linear) for module in model.modules())
    found = report.graphs["model"].audit
    assert found.integer_layers == layers == 18
    if report.profile == "fast":
        assert found.operators["MatMulIntegerToFloat"] == layers
        assert found.operators["Attention"] == 3
        assert "Where" not in found.operators, "the guard of rows without tokens is gone"
        assert "Transpose" not in found.operators, "attention splits heads itself"
    else:
        assert not {"MatMulIntegerToFloat", "GatherBlockQuantized", "Attention"} & set(found.operators)
        assert found.operators["DequantizeLinear"] == layers + found.operators["QuantizeLinear"]
        assert found.operators["Transpose"] == 12, "of queries, keys, values and results, once each"
    # q, k and v of a layer share one quantization of their input; in `static`, q and k are quantized too.
    assert found.operators["QuantizeLinear"] == (12 if report.profile == "fast" else 18)


@pytest.mark.parametrize(("rows", "length", "padded"), [(1, 2, False), (5, 9, True), (2, 100, False)])
def test_agrees_with_the_model(made: tuple[Any, ExportReport], rows: int, length: int, padded: bool) -> None:
    model, report = made
    batch = models.inputs("bert", rows, length, padded, seed=3)
    expected, mask = models.output(model, batch), batch["attention_mask"].bool()
    found = torch.from_numpy(run(report.path, batch)["last_hidden_state"])
    cosine = torch.cosine_similarity(expected[mask], found[mask], dim=-1)
    assert float(cosine.mean()) >= 0.998


def test_a_row_without_tokens_spoils_no_other(made: tuple[Any, ExportReport]) -> None:
    _, report = made
    batch = models.inputs("bert", 2, 6)
    alone = run(report.path, {name: tensor[:1] for name, tensor in batch.items()})["last_hidden_state"]
    batch["attention_mask"][1] = 0
    both = run(report.path, batch)["last_hidden_state"]
    assert np.isfinite(both).all()
    np.testing.assert_allclose(both[:1], alone, atol=1e-5)


def quantized_scores(path: Path) -> int:
    """Products of two factors that are dequantized, neither of them a weight."""
    graph = onnx.load(str(path)).graph
    weights = {weight.name for weight in graph.initializer}
    stored = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in weights}
    computed = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"} - stored
    return sum(node.op_type == "MatMul" and set(node.input) <= computed for node in graph.node)


@pytest.mark.parametrize(("scores", "expected"), [(True, 3), (False, 0)])
def test_queries_and_keys_are_quantized_at_their_product(scores: bool, expected: int, tmp_path: Path) -> None:
    model, _, _ = quantized(models.tiny("bert"), "bert", scores=scores)
    report = export_onnx(model, tmp_path / "m.onnx", tokenizer=models.tokenizer(), profile="static")
    assert quantized_scores(report.path) == expected
    layers = [module for module in model.modules() if isinstance(module, StaticInt8Linear)]
    assert sum(layer.output_scale is not None for layer in layers) == 2 * expected


def test_positions_that_turn_queries_leave_the_product_as_it_is(tmp_path: Path) -> None:
    model, _, _ = quantized(models.tiny("qwen3"), "qwen3")
    assert any(isinstance(module, StaticInt8Linear) and module.scores for module in model.modules())
    report = export_onnx(model, tmp_path / "m.onnx", tokenizer=models.tokenizer(), profile="static")
    assert quantized_scores(report.path) == 0
    operators = report.graphs["model"].audit.operators
    assert operators["QuantizeLinear"] == operators["DequantizeLinear"] - sum(
        isinstance(module, StaticInt8Linear) for module in model.modules()
    )
