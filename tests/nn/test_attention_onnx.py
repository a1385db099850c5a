"""Replaced attention in ONNX: one file for every length, traced at a length below one block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.export import Dim

from compresskit.nn.window_blocks import BLOCK
from tests import models
from tests.nn.attention_cases import LINEAR, replaced

SETTINGS = {"window": {"kind": "window", "window": 7, "global_tokens": 2}, "linear": LINEAR}
# torch.onnx and onnxscript warn of their own deprecations.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def tiny(name: str, kind: str) -> hf.PreTrainedModel:
    task: models.Task = "lm" if name in models.DECODERS else "base"
    model = models.tiny(name, task=task, num_hidden_layers=1, max_position_embeddings=400)
    return replaced(model, SETTINGS[kind])


def exported(module: nn.Module, inputs: tuple[Any, ...], shapes: tuple[Any, ...], path: Path) -> Any:
    torch.onnx.export(module.eval(), inputs, str(path), dynamo=True, dynamic_shapes=shapes, verbose=False)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(session: Any, inputs: Sequence[Tensor]) -> Tensor:
    names = [each.name for each in session.get_inputs()]
    values = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    result = session.run(None, values)[0]
    assert np.isfinite(result).all()
    return torch.from_numpy(result)


class Encoder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


@pytest.mark.parametrize("kind", SETTINGS)
def test_encoder(kind: str, tmp_path: Path) -> None:
    module = Encoder(tiny("bert", kind)).eval()
    example = models.inputs("bert", batch=2, length=12)
    dynamic = {0: Dim.AUTO, 1: Dim.AUTO}
    session = exported(module, tuple(example.values()), (dynamic, dynamic), tmp_path / "model.onnx")
    for batch, length in ((1, 2), (1, 6), (3, 12), (2, BLOCK), (2, BLOCK + 1), (3, 130), (1, 2 * BLOCK), (2, 317)):
        inputs = models.inputs("bert", batch=batch, length=length, padded=length > 8, seed=length)
        real = inputs["attention_mask"].bool()
        with torch.no_grad():
            expected = module(**inputs)[real]
        torch.testing.assert_close(run(session, tuple(inputs.values()))[real], expected, atol=1e-4, rtol=0)


class Decoder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        cache = hf.DynamicCache()
        for layer, (key, value) in enumerate(past):
            cache.update(key, value, layer)
        result = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
        return result.logits, [(layer.keys, layer.values) for layer in cache.layers]


def step(module: nn.Module, batch: int, before: int, new: int) -> tuple[Any, ...]:
    """Inputs of a step after ``before`` tokens; the second row is padded on the left."""
    ids = torch.randint(5, models.VOCABULARY, (batch, before + new))
    mask = torch.ones_like(ids)
    if batch > 1 and before > 3:
        mask[1, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    past = [(torch.zeros(batch, 2, 0, 8), torch.zeros(batch, 2, 0, 8))]
    if before:
        with torch.no_grad():
            past = module(ids[:, :before], mask[:, :before], positions[:, :before], past)[1]
    return ids[:, before:], mask, positions[:, before:], past


@pytest.mark.parametrize("kind", SETTINGS)
def test_decoder_with_a_cache(kind: str, tmp_path: Path) -> None:
    module = Decoder(tiny("llama", kind)).eval()
    long = {0: Dim.AUTO, 1: Dim.AUTO}
    shapes = (long, long, long, [({0: Dim.AUTO, 2: Dim.AUTO}, {0: Dim.AUTO, 2: Dim.AUTO})])
    session = exported(module, step(module, 2, 9, 5), shapes, tmp_path / "model.onnx")
    for batch, before, new in ((1, 0, 1), (1, 0, 8), (2, 0, 130), (1, 1, 1), (3, 100, 1), (2, 50, 3), (2, 100, 80)):
        inputs = step(module, batch, before, new)
        real = inputs[1][:, before:].bool()
        with torch.no_grad():
            expected = module(*inputs)[0][real]
        found = run(session, (*inputs[:3], *inputs[3][0]))[real]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["window"])
def test_one_token_after_a_cache_of_any_length(kind: str, tmp_path: Path) -> None:
    module = Decoder(tiny("llama", kind)).eval()
    row = {0: Dim.AUTO}
    shapes = (row, {0: Dim.AUTO, 1: Dim.AUTO}, row, [({0: Dim.AUTO, 2: Dim.AUTO}, {0: Dim.AUTO, 2: Dim.AUTO})])
    session = exported(module, step(module, 2, 5, 1), shapes, tmp_path / "model.onnx")
    for batch, before in ((1, 0), (1, 1), (2, 4), (2, 6), (2, 20), (3, 200)):
        inputs = step(module, batch, before, 1)
        with torch.no_grad():
            expected = module(*inputs)[0]
        found = run(session, (*inputs[:3], *inputs[3][0]))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
