"""The real encoder: int8 layers and 4-bit tables in a file below 0.27 of the checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from compresskit.checkpoint.source import open_source
from compresskit.core.surgery import replace
from compresskit.export import export_onnx
from compresskit.nn.embedding import QuantizedEmbedding
from tests.export.conftest import to_int8


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_int8_and_four_bits(minilm_path: Path, tmp_path: Path) -> None:
    source = open_source(minilm_path)
    model = source.load_model()
    to_int8(model, "token", "encoder")
    for name in ("word_embeddings", "position_embeddings"):
        path = f"embeddings.{name}"
        replace(model, path, QuantizedEmbedding.from_table(model.get_submodule(path), 4, 32))
    report = export_onnx(
        model,
        tmp_path / "model.onnx",
        tokenizer=source.load_tokenizer(),
        sentence_transformer=source.sentence_transformer,
    )
    assert report.bytes <= 0.27 * 90_900_000
    found = report.graphs["model"].audit
    assert (found.integer_layers, found.tables) == (36, 2)
    assert list(report.graphs["model"].outputs) == ["last_hidden_state", "sentence_embedding"]
    assert (
        min(case.cosine_mean for case in report.parity if case.name == "text" and case.output != "last_hidden_state")
        >= 0.9995
    )
