"""Encoder-decoders in three files: they write what ``generate`` writes, and hold what is integer once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache

from compresskit.bench.engines.base import Settings
from compresskit.bench.engines.onnxruntime_engine import OnnxRuntimeEngine
from compresskit.bench.subjects import onnx_subject
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.errors import ExportError
from compresskit.export import ExportReport, export_onnx, parity, writing
from compresskit.methods.quantization.embedding import Embedding
from compresskit.methods.quantization.rtn import Rtn
from tests import models
from tests.export.conftest import to_int8

FILES = ("encoder_model", "decoder_model", "decoder_with_past_model")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ExportReport]:
    """Two decoder blocks, the second with the position bias of the first; a head that is not tied writes all sorts."""
    model = models.tiny("t5", task="lm", num_layers=1, num_decoder_layers=2)
    head = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(1))
    model.lm_head.weight = torch.nn.Parameter(head)
    return model, export_onnx(model, tmp_path_factory.mktemp("t5") / "model.onnx", tokenizer=models.tokenizer())


def sessions(report: ExportReport) -> dict[str, Any]:
    return {name: parity.session(graph.file) for name, graph in report.graphs.items()}


def test_files_are_optimums(t5: tuple[Any, ExportReport]) -> None:
    model, report = t5
    assert model.config._attn_implementation == "sdpa"
    assert [graph.file.name for graph in report.graphs.values()] == [f"{name}.onnx" for name in FILES]
    assert report.path.name == "encoder_model.onnx"
    assert report.bytes == sum(report.files[f"{name}.onnx"] for name in FILES[:2])
    step = report.graphs["decoder_with_past_model"]
    assert step.inputs["past_key_values.1.decoder.key"] == ["batch", 4, "past_sequence", 16]
    assert step.inputs["past_key_values.1.encoder.value"] == ["batch", 4, "encoder_sequence", 16]
    # What is read from the encoder stays as it is: only the cache of what was written comes back.
    assert list(step.outputs) == [
        "logits",
        *(f"present.{n}.decoder.{part}" for n in (0, 1) for part in ("key", "value")),
    ]
    stored = {weight.name for weight in onnx.load(step.file).graph.initializer}
    assert not any("EncDecAttention.k" in name or name.startswith("encoder.") for name in stored)


def test_writes_what_generate_writes(t5: tuple[Any, ExportReport]) -> None:
    """Past the 32 buckets of exact distances, with texts of different lengths in a batch."""
    model, report = t5
    read = models.inputs("gpt2", 3, 21, padded=True, seed=5)
    model.generation_config.eos_token_id = None
    # Given one, for generate makes a cache of as many layers as the encoder has.
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    expected = model.generate(**read, past_key_values=cache, max_new_tokens=40, do_sample=False)
    written, logits = writing.write(sessions(report), read, models.PAD, 40)
    assert len(set(written[0].tolist())) > 3
    assert written.tolist() == expected[:, 1:].tolist()
    with torch.no_grad():
        whole = model(**read, decoder_input_ids=expected[:, :-1], use_cache=False).logits
    assert float((whole - logits).abs().max()) <= 1e-4 * max(1.0, float(whole.abs().max()))


def test_runs_in_the_benchmark(t5: tuple[Any, ExportReport]) -> None:
    model, report = t5
    engine = OnnxRuntimeEngine()
    engine.load(report.path, Settings())
    batch = models.inputs("t5", 2, 9)
    found = engine.run({name: tensor.numpy() for name, tensor in batch.items()})
    assert list(found) == ["logits"]
    assert np.abs(found["logits"] - models.output(model, batch).numpy()).max() <= 1e-4
    assert set(onnx_subject(report.path, "onnxruntime").files) == {f"{name}.onnx" for name in FILES}


def test_integer_layers_and_a_tied_head(tmp_path: Path) -> None:
    """Token codes and head codes are one tensor in the decoder's files; a step never unpacks the head."""
    model = models.tiny("t5", task="lm", num_layers=1, num_decoder_layers=1)  # tied
    for method in (Embedding(bits=8), Rtn(bits=4, group=32, targets=("*DenseReluDense.wi",))):
        method.apply(model, resolve(model, method).sites, Context())
    to_int8(model, "token", "Attention")
    report = export_onnx(model, tmp_path / "small.onnx", tokenizer=models.tokenizer())
    assert {path.name for path in tmp_path.iterdir()} == {f"small_{name}.onnx" for name in FILES}
    assert report.held_to == "token"
    found = {name: graph.audit for name, graph in report.graphs.items()}
    # Cross-attention's keys and values are in the first pass only.
    assert {name: audit.integer_layers for name, audit in found.items()} == dict(zip(FILES, (4, 8, 6), strict=True))
    assert [audit.tables for audit in found.values()] == [4, 4, 4]  # one table under four names
    assert found["decoder_with_past_model"].float_bytes < 8 * models.VOCABULARY * models.HIDDEN // 4
    assert next(case for case in report.parity if case.name == writing.WRITING).cosine_mean >= 0.999


def test_files_that_hand_on_the_cache_wrongly_are_refused(t5: tuple[Any, ExportReport]) -> None:
    model, report = t5
    opened = sessions(report)
    read = models.inputs("gpt2", 2, 9, seed=3)

    class Wrong:
        """A step that always sees the first cache."""

        def __init__(self) -> None:
            self.step, self.first = opened["decoder_with_past_model"], dict[str, Any]()

        def get_outputs(self) -> Any:
            return self.step.get_outputs()

        def run(self, names: list[str], feed: dict[str, Any]) -> Any:
            self.first = self.first or feed
            return self.step.run(names, self.first | {"input_ids": feed["input_ids"]})

    assert writing.check_writing(model, opened, read, "float").difference <= 1e-5
    wrong = opened | {"decoder_with_past_model": Wrong()}
    with pytest.raises(ExportError) as caught:
        writing.check_writing(model, wrong, read, "float")
    assert caught.value.code == "CK-X013"
    case = writing.check_writing(model, wrong | {"decoder_with_past_model": Wrong()}, read, "token")
    with pytest.raises(ExportError) as caught:
        parity.require([case], "float")
    assert caught.value.code == "CK-X007"
