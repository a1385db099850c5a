"""Engines give the same outputs and write the same text; what they can't do is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compresskit.bench.engines import engine
from compresskit.bench.engines.base import Engine, Settings, digest
from compresskit.errors import UsageError
from tests import models


def loaded(name: str, path: Path, device: str = "cpu") -> Engine:
    found = engine(name)
    found.load(path, Settings(threads=1, device=device))
    return found


def batch(rows: int = 2, length: int = 12) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in models.inputs("bert", rows, length).items()}


def written(found: Engine, arrays: dict[str, np.ndarray], count: int) -> list[int]:
    decoding = found.begin(found.prepare(arrays), count)
    tokens = [decoding]
    for _ in range(count - 1):
        tokens.append(found.step(tokens[-1]))
    return [int(found.token_array(token)[0, 0]) for token in tokens]


def test_outputs_agree(bert: Path) -> None:
    torch_engine, onnx_engine = loaded("torch", bert), loaded("onnxruntime", bert / "model.onnx")
    left, right = torch_engine.run(batch()), onnx_engine.run(batch())
    assert left["last_hidden_state"].shape == (2, 12, models.HIDDEN)
    np.testing.assert_allclose(left["last_hidden_state"], right["last_hidden_state"], atol=1e-4)
    assert torch_engine.details()["class"] == "BertModel"
    assert onnx_engine.details()["providers"] == ["CPUExecutionProvider"]


def test_decoding_is_greedy_generation(gpt2: Path) -> None:
    import torch
    from transformers import GPT2LMHeadModel

    arrays = batch(1, 8)
    model = GPT2LMHeadModel.from_pretrained(gpt2)
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    wanted = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, eos_token_id=None)
    assert written(loaded("torch", gpt2), arrays, 6) == wanted[0, 8:].tolist()
    assert written(loaded("onnxruntime", gpt2 / "model.onnx"), arrays, 6) == wanted[0, 8:].tolist()


def test_an_encoder_writes_no_text(bert: Path) -> None:
    for name, path in (("torch", bert), ("onnxruntime", bert / "model.onnx")):
        found = loaded(name, path)
        with pytest.raises(UsageError) as caught:
            found.begin(found.prepare(batch()), 2)
        assert caught.value.code == "CK-B006"


def test_unknown_and_missing_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        engine("jax")
    assert caught.value.code == "CK-B004"
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(UsageError) as caught:
        engine("openvino").load(tmp_path / "model.onnx", Settings())
    assert caught.value.code == "CK-B004"
    assert "compresskit[openvino]" in caught.value.fix


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(UsageError) as caught:
        loaded("onnxruntime", tmp_path / "model.onnx")
    assert caught.value.code == "CK-B005"


def test_openvino_agrees(bert: Path) -> None:
    pytest.importorskip("openvino")
    left = loaded("onnxruntime", bert / "model.onnx").run(batch())
    right = loaded("openvino", bert / "model.onnx").run(batch())
    np.testing.assert_allclose(left["last_hidden_state"], right["last_hidden_state"], atol=1e-4)


def test_a_digest_knows_names_shapes_and_bytes() -> None:
    array = np.arange(6, dtype=np.int64)
    different = [
        {"a": array},
        {"b": array},
        {"a": array.reshape(2, 3)},
        {"a": array.astype(np.int32)},
        {"a": array + 1},
        {"a": array, "b": array},
    ]
    assert len({digest(arrays) for arrays in different}) == len(different)
    assert digest({"a": array, "b": array + 1}) == digest({"b": array + 1, "a": array.copy()})
    assert digest({"a": array}, limit=8) == digest({"a": np.array([0, 9, 9, 9, 9, 9])}, limit=8)


@pytest.mark.gpu
def test_cuda_times_are_of_the_device(bert: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from compresskit.bench.timing import time_calls

    found = loaded("torch", bert, "cuda")
    samples, _ = time_calls(found, [found.prepare(batch())], [24], calls=5, start=0, warm=2)
    assert len(samples.device_ms) == 5
    assert all(0 < device <= 1.2 * wall for device, wall in zip(samples.device_ms, samples.wall_ms, strict=True))
