"""Models of a run: names, engines, hashes, sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from compresskit.bench.subjects import find
from compresskit.errors import CompressKitError, UsageError
from tests import models


def test_a_model_may_be_compared_with_itself(bert: Path) -> None:
    first, second = find([str(bert), str(bert)], None)
    assert first.name == "tiny"
    assert second.name == "tiny #2"
    assert first.fingerprint == second.fingerprint
    assert first.architecture == "BertModel"
    assert first.served["weights"] == (bert / "model.safetensors").stat().st_size
    assert first.files["model.safetensors"].startswith("sha256:")


def test_engines_are_chosen(bert: Path) -> None:
    found = find([str(bert), str(bert / "model.onnx"), f"onnxruntime={bert}"], None)
    assert [subject.engine for subject in found] == ["torch", "onnxruntime", "onnxruntime"]
    assert found[2].path == bert / "model.onnx"
    assert len({subject.name for subject in found}) == 3
    assert find([str(bert)], "onnxruntime")[0].path.name == "model.onnx"


def test_an_onnx_file_is_served_with_its_tokenizer(bert: Path) -> None:
    found = find([str(bert / "model.onnx")], None)[0]
    assert found.served["weights"] == (bert / "model.onnx").stat().st_size
    assert found.served["tokenizer and config"] > 1000
    assert found.config["model_type"] == "bert"


def test_a_decoder_has_two_files(gpt2: Path) -> None:
    found = find([str(gpt2 / "model.onnx")], None)[0]
    assert set(found.files) == {"model.onnx", "decoder_with_past.onnx"}
    assert found.generative
    assert find([str(gpt2)], None)[0].generative


@pytest.mark.parametrize(
    ("specs", "engine", "code"),
    [
        ([], None, "CK-B001"),
        (["nothing.onnx"], None, "CK-B002"),
        (["CHECKPOINT"], "onnxruntime", "CK-B002"),
        (["CHECKPOINT"], "jax", "CK-B004"),
        (["x.onnx"], "torch", "CK-B005"),
        (["../../x"], None, "CK-M001"),
        (["http://169.254.169.254/x"], None, "CK-S007"),
        (["file:///etc"], None, "CK-S007"),
    ],
)
def test_what_is_no_model(tmp_path: Path, specs: list[str], engine: str | None, code: str) -> None:
    if "CHECKPOINT" in specs:
        specs = [str(models.write_checkpoint(models.tiny("bert"), tmp_path / "m"))]
    with pytest.raises(CompressKitError) as caught:
        find(specs, engine)
    assert caught.value.code == code
    assert isinstance(caught.value, UsageError) or caught.value.exit_code in (3, 6)
