"""A process that hasn't imported compresskit must fail to load a compressed checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from compresskit.checkpoint import guard
from compresskit.checkpoint.load import attach, load_model
from compresskit.errors import ModelError
from tests import models
from tests.checkpoint import edits
from tests.checkpoint.toys import ToyInt8, put

OTHERS_LACK = ("decoder", "pooler", "lm_head", "classifier", "cls", "predictions", "score")


@pytest.mark.parametrize("task", ["base", "classifier", "lm"])
def test_the_guard_is_in_every_class_of_the_model(family: str, task: models.Task) -> None:
    if task not in models.tasks(family):
        pytest.skip("no such class")
    model = models.tiny(family, task=task)
    address = guard.choose(model)
    assert address.split(".")[0] not in OTHERS_LACK
    for other in models.tasks(family):
        names = {name for name, _ in models.tiny(family, task=other).named_parameters()}
        assert any(name == address or name.endswith(f".{address}") for name in names)
    assert model.get_parameter(f"{prefix(model)}{address}").ndim == 1


def prefix(model: nn.Module) -> str:
    return f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""


def test_shared_parameters_are_avoided_but_do_work(tmp_path: Path) -> None:
    model = models.tiny("bert")
    edits.shared_layers(model)
    free = guard.choose(model)
    assert free == "embeddings.LayerNorm.weight"
    for module in list(model.modules()):
        if type(module) is nn.LayerNorm:
            module.weight = model.encoder.layer[0].output.LayerNorm.weight
            module.bias = model.encoder.layer[0].output.LayerNorm.bias
        if type(module) is nn.Linear:
            module.bias = None
    assert guard.choose(model).endswith("LayerNorm.weight")
    attach(model)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.encoder.layer[1].output.LayerNorm.weight is loaded.embeddings.LayerNorm.weight
    assert torch.equal(models.output(loaded, models.inputs("bert")), models.output(model, models.inputs("bert")))


def test_without_vectors_the_smallest_matrix_guards(tmp_path: Path) -> None:
    model = models.tiny("bert")
    for path, module in list(model.named_modules()):
        if type(module) is nn.LayerNorm:
            put(model, path, nn.Identity())
        elif type(module) is nn.Linear:
            module.bias = None
    assert guard.choose(model) == "embeddings.token_type_embeddings.weight"
    attach(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(
        models.output(load_model(tmp_path), models.inputs("bert")), models.output(model, models.inputs("bert"))
    )


def test_nothing_left_to_guard() -> None:
    model = models.tiny("bert")
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Embedding | nn.LayerNorm):
            put(model, path, nn.Identity())
        elif isinstance(module, nn.Linear):
            put(model, path, ToyInt8.of(module))
    with pytest.raises(ModelError) as caught:
        guard.choose(model)
    assert caught.value.code == "CK-L014"


def test_what_is_stored(tmp_path: Path) -> None:
    model = models.tiny("gpt2", task="lm")
    edits.low_rank(model)
    attach(model)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "transformer.h.0.ln_1.weight"
    assert tensors[name].shape == (0,)
    assert torch.equal(tensors[name + guard.SUFFIX], model.get_parameter(name))
    assert not any(guard.SUFFIX in key for key in load_model(tmp_path).state_dict())


_STRANGER = """
import json, sys, transformers
outcomes = []
for folder, name in json.loads(sys.argv[1]):
    try:
        getattr(transformers, name).from_pretrained(folder)
        outcomes.append("loaded")
    except Exception as error:
        outcomes.append(f"{type(error).__name__}: {error}")
print(json.dumps(outcomes))
"""


def test_a_stranger_fails(tmp_path: Path) -> None:
    """One process for all: changes that leave every shape alone among them, and other classes of the model."""
    asked: list[tuple[str, str]] = []
    for name in ("bert", "gpt2", "llama", "t5", "albert", "distilbert"):
        kinds = ("int8", "low_rank", "window", "shared_layers", "epsilons", "uneven_heads")
        for edit in kinds if name in ("bert", "gpt2") else ("int8", "window"):
            task: models.Task = "lm" if edit != "window" else "classifier"
            model = models.tiny(name, task=task)
            edits.ALL[edit](model)
            assert attach(model)
            folder = tmp_path / f"{name}-{edit}"
            model.save_pretrained(folder)
            others = models.tasks(name) if edit in ("int8", "window") else (task,)
            asked += [(str(folder), models.model_class(name, other).__name__) for other in others]
    asked.append((str(tmp_path / "t5-int8"), "T5EncoderModel"))
    models.tiny("bert").save_pretrained(tmp_path / "stock")
    asked.append((str(tmp_path / "stock"), "BertModel"))

    script = [sys.executable, "-W", "ignore", "-c", _STRANGER, json.dumps(asked)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=110, check=True)
    outcomes = json.loads(done.stdout.splitlines()[-1])

    assert outcomes.pop() == "loaded"
    assert [pair for pair, outcome in zip(asked, outcomes, strict=False) if "mismatched" not in outcome] == []
    assert len(outcomes) > 40
