"""Whole models: what the file says, that it agrees with the model, and that a bad one never appears."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

import compresskit
from compresskit.checkpoint import manifest
from compresskit.cli.main import main
from compresskit.core.context import Context
from compresskit.core.surgery import replace
from compresskit.core.targets import resolve
from compresskit.errors import ExportError, UsageError
from compresskit.export import ExportReport, export_onnx, parity
from compresskit.methods.quantization.kv_cache import KvCache
from compresskit.nn import attention, kv_cache
from compresskit.nn.embedding import QuantizedEmbedding
from compresskit.nn.int8 import Int8Linear
from tests import models
from tests.export.conftest import run, to_int8

DESCRIPTION = SimpleNamespace(pooling="mean", normalize=True)


def int8_bert(activations: Any = "token") -> Any:
    model = models.tiny("bert")
    to_int8(model, activations, "encoder")
    replace(
        model,
        "embeddings.word_embeddings",
        QuantizedEmbedding.from_table(model.embeddings.word_embeddings, 4, 32),
    )
    return model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ExportReport]:
    """An int8 encoder with a 4-bit table, pooled and normalized in the graph."""
    model = int8_bert()
    output = tmp_path_factory.mktemp("bert") / "encoder.onnx"
    return model, export_onnx(model, output, tokenizer=models.tokenizer(), sentence_transformer=DESCRIPTION)


def test_inputs_and_outputs(bert: tuple[Any, ExportReport]) -> None:
    graph = onnx.load(bert[1].path).graph

    def shown(values: Any) -> dict[str, list[Any]]:
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    assert shown(graph.input) == {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "sequence"]}
    assert shown(graph.output) == {
        "last_hidden_state": ["batch", "sequence", models.HIDDEN],
        "sentence_embedding": ["batch", models.HIDDEN],
    }
    assert {v.type.tensor_type.elem_type for v in graph.input} == {onnx.TensorProto.INT64}
    assert shown(graph.input) == bert[1].graphs["model"].inputs


@pytest.mark.parametrize(("rows", "length", "padded"), [(1, 1, False), (2, 30, False), (5, 9, True), (1, 128, False)])
def test_int8_encoder_agrees(bert: tuple[Any, ExportReport], rows: int, length: int, padded: bool) -> None:
    model, report = bert
    batch = models.inputs("bert", rows, max(length, 2), padded, seed=7)
    batch = {name: tensor[:, :length] for name, tensor in batch.items()}
    found = run(report.path, batch)
    mask = batch["attention_mask"].bool()
    expected = models.output(model, batch)
    cosine = torch.cosine_similarity(expected[mask], torch.from_numpy(found["last_hidden_state"])[mask], dim=-1)
    assert float(cosine.mean()) >= 0.9995
    weights = mask.unsqueeze(-1)
    vector = torch.nn.functional.normalize((expected * weights).sum(1) / weights.sum(1), dim=-1).numpy()
    assert np.sum(vector * found["sentence_embedding"], -1).mean() >= 0.9995
    assert np.allclose(np.linalg.norm(found["sentence_embedding"], axis=-1), 1, atol=1e-5)


def test_report_says_what_is_there(bert: tuple[Any, ExportReport]) -> None:
    _, report = bert
    found = report.graphs["model"].audit
    assert report.held_to == "token"
    assert report.bytes == report.path.stat().st_size
    assert (found.integer_layers, found.tables) == (18, 1)
    # q, k and v of a layer share one quantization of their input.
    assert found.operators["MatMulInteger"] == 18
    assert found.operators["QuantizeLinear"] == 12
    assert {case.name for case in report.parity} == {"one token", "random", "padded", "long", "text"}
    assert json.loads(json.dumps(report.to_dict()))["parity"]["cosine_mean"] >= 0.9995


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ExportReport]:
    model = models.tiny(request.param, task="lm")
    if request.param == "llama":  # a cache that isn't in the file; so long a window changes nothing below
        method = KvCache(bits=2, residual=64)
        method.apply(model, resolve(model, method).sites, Context())
    return model, export_onnx(model, tmp_path_factory.mktemp(request.param) / "model.onnx")


def test_decoder_agrees(decoder: tuple[Any, ExportReport]) -> None:
    model, report = decoder
    assert report.held_to == "float"
    assert report.max_difference <= parity.FLOAT_TOLERANCE
    quantized = any(map(kv_cache.settings_of, model.modules()))
    assert [warning.split()[0] for warning in report.warnings] == ["quantization.kv_cache"] * quantized
    for rows, length, padded in ((1, 1, False), (3, 21, True), (2, 90, False)):
        batch = models.inputs("gpt2", rows, max(2, length), padded, seed=5)
        batch = {name: tensor[:, :length] for name, tensor in batch.items()}
        expected, mask = models.output(model, batch), batch["attention_mask"].bool()
        found = torch.from_numpy(run(report.path, batch)["logits"])
        assert float((expected - found)[mask].abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))


def test_cached_decoding_is_generate(decoder: tuple[Any, ExportReport]) -> None:
    """Prompts of different lengths, padded on the left; eight tokens, greedily."""
    model, report = decoder
    ids = torch.randint(5, models.VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    step = report.graphs["decoder_with_past"].file
    assert step.name == "decoder_with_past.onnx"
    expected = model.generate(
        ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0
    )
    found = run(report.path, {"input_ids": ids, "attention_mask": mask})
    written: Tensor = ids
    while True:
        logits = torch.from_numpy(found["logits"][:, -1])
        logits[:, model.generation_config.eos_token_id] = -torch.inf
        token = logits.argmax(-1, keepdim=True)
        written, mask = torch.cat([written, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
        if written.shape[1] == expected.shape[1]:
            break
        cache = {
            name.replace("present", "past_key_values"): torch.from_numpy(array)
            for name, array in found.items()
            if name != "logits"
        }
        found = run(step, {"input_ids": token, "attention_mask": mask, **cache})
    assert written.tolist() == expected.tolist()


def test_t5_keeps_its_attention(tmp_path: Path) -> None:
    model = models.tiny("t5", task="lm", num_layers=1, num_decoder_layers=1)
    before = model.config._attn_implementation
    report = export_onnx(model, tmp_path / "t5.onnx", tokenizer=models.tokenizer(), cache=False)
    assert model.config._attn_implementation == before == "sdpa"
    batch = models.inputs("t5", 3, 17, padded=True)
    expected = models.output(model, batch)
    found = torch.from_numpy(run(report.path, batch)["logits"])
    assert float((expected - found).abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    "settings",
    [{"kind": "window", "window": 4, "global_tokens": 1}, {"kind": "linear"}],
    ids=["window", "linear"],
)
def test_replaced_attention(settings: dict[str, Any], tmp_path: Path) -> None:
    model = models.tiny("bert", num_hidden_layers=1, max_position_embeddings=400)
    attention.install(model, model.encoder.layer[0].attention.self, settings)
    report = export_onnx(model, tmp_path / "attention.onnx")
    for rows, length, padded in ((1, 3, False), (3, 40, True), (1, 300, False)):
        batch = models.inputs("bert", rows, length, padded)
        mask = batch["attention_mask"].bool()
        found = torch.from_numpy(run(report.path, batch)["last_hidden_state"])
        expected = models.output(model, batch)
        assert float((expected - found)[mask].abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))


def test_a_wrong_file_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.tiny("bert", num_hidden_layers=1)
    to_int8(model, "token", "intermediate")
    output = tmp_path / "model.onnx"
    output.write_bytes(b"the last good one")
    right = Int8Linear._onnx
    monkeypatch.setattr(Int8Linear, "_onnx", lambda layer, x: right(layer, x) * -1.5)
    with pytest.raises(ExportError) as caught:
        export_onnx(model, output)
    assert caught.value.code == "CK-X007"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert output.read_bytes() == b"the last good one"


def test_bad_arguments_are_refused_before_anything_is_traced(tmp_path: Path) -> None:
    model = models.tiny("bert", num_hidden_layers=1)
    for code, place, options in (
        ("CK-X009", "model.pt", {}),
        ("CK-X011", "model.onnx", {"profile": "quick"}),
        ("CK-X011", "model.onnx", {"opset": 12}),
    ):
        with pytest.raises(UsageError) as caught:
            export_onnx(model, tmp_path / place, **options)  # type: ignore[arg-type]
        assert caught.value.code == code
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ExportError) as refused:
            export_onnx(model.to(dtype), tmp_path / "model.onnx")
        assert refused.value.code == "CK-X012"
    assert list(tmp_path.iterdir()) == []


def test_the_package_is_the_function() -> None:
    assert callable(compresskit.export)
    with pytest.raises(UsageError):
        compresskit.export("nowhere", "model.pt")


def test_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = models.write_checkpoint(models.tiny("distilbert", n_layers=1), tmp_path / "source")
    status = main(["export", str(folder), "--onnx", str(tmp_path / "out" / "small.onnx"), "--json", "--quiet"])
    printed = capsys.readouterr().out.splitlines()
    assert status == 0
    result = json.loads(printed[-1])
    assert result["bytes"] == (tmp_path / "out" / "small.onnx").stat().st_size
    assert 0.5 < result["ratio"] < 2
    assert not (folder / manifest.NAME).exists()
