"""Parameters and operations against what is known of the shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compresskit.bench.counts import counts, macs, parameters
from compresskit.bench.onnx_counts import tensors
from compresskit.core import surgery
from compresskit.nn.int8 import Int8Linear
from compresskit.nn.low_rank import LowRankLinear
from tests import models


def test_parameters_of_a_stock_model() -> None:
    model = models.tiny("bert")
    total = sum(parameter.numel() for parameter in model.parameters())
    found = parameters(model)
    assert found["logical"] == found["stored"] == total
    assert found["bytes"] == 4 * total
    assert found["effective_bits"] == 32.0
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.zero_()
    assert found["nonzero"] - parameters(model)["nonzero"] == pytest.approx(models.HIDDEN * models.WIDTH, abs=5)


def test_tied_parameters_count_once() -> None:
    model = models.tiny("gpt2", task="lm")
    head = model.lm_head.weight
    assert head is model.transformer.wte.weight
    distinct = {id(parameter): parameter.numel() for parameter in model.parameters()}
    assert parameters(model)["logical"] == sum(distinct.values())


def test_int8_keeps_the_logical_count() -> None:
    model = models.tiny("bert")
    before = parameters(model)
    path = "encoder.layer.0.intermediate.dense"
    dense = model.get_submodule(path)
    surgery.replace(model, path, Int8Linear.from_weight(dense.weight, dense.bias))
    after = parameters(model)
    assert after["logical"] == before["logical"]
    assert after["bytes"] < before["bytes"] - 2.5 * dense.weight.numel()
    assert after["effective_bits"] < 32


def test_macs_of_a_bert() -> None:
    batch, tokens = 2, 16
    found = macs(models.tiny("bert"), batch, tokens)
    hidden, width, layers = models.HIDDEN, models.WIDTH, models.LAYERS
    matrices = layers * tokens * (4 * hidden * hidden + 2 * hidden * width) + hidden * hidden
    attention = layers * 2 * tokens * tokens * hidden
    assert found["attention"] == batch * attention
    assert found["effective"] == found["dense"] == batch * (matrices + attention)


def test_macs_of_a_low_rank_matrix() -> None:
    model = models.tiny("bert")
    path = "encoder.layer.1.intermediate.dense"
    dense = model.get_submodule(path)
    out, into = dense.weight.shape
    surgery.replace(model, path, LowRankLinear(into, out, 8, True))
    before, after = macs(models.tiny("bert"), 1, 16), macs(model, 1, 16)
    assert after["dense"] == before["dense"]
    assert before["effective"] - after["effective"] == 16 * (out * into - 8 * (out + into))


def test_an_unknown_architecture_has_parameters_and_no_macs() -> None:
    from transformers import MPNetConfig, MPNetModel

    settings = MPNetConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    found = counts(MPNetModel(settings), 1, 8)
    assert found["macs"] is None
    assert found["reason"]
    assert found["parameters"]["logical"] > 0
    assert found["not_counted"]


def test_what_an_onnx_file_stores(tmp_path: Path) -> None:
    from compresskit.bench.doctor import write_probe

    found = tensors(write_probe(tmp_path / "probe.onnx"))
    assert found["stored"] == found["nonzero"] == 9 * 256 * 256
    assert found["effective_bits"] == 32.0
