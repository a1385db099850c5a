"""Reading a model part by part: what a part holds, what is left of it, and what can't be read so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from compresskit.checkpoint import stream
from compresskit.checkpoint.readback import same_bits
from compresskit.checkpoint.source import open_source
from compresskit.checkpoint.stream import StreamedModel, release
from compresskit.core import surgery
from compresskit.errors import ModelError
from tests import models


def opened(model: nn.Module, folder: Path) -> StreamedModel:
    return StreamedModel(open_source(models.write_checkpoint(model, folder / "source", with_tokenizer=False)))


def live(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.device.type != "meta"}


@pytest.mark.parametrize(("name", "task"), [("bert", "base"), ("gpt2", "lm"), ("t5", "lm"), ("albert", "base")])
def test_the_parts_together_are_the_model(name: str, task: models.Task, tmp_path: Path) -> None:
    model = models.tiny(name, task=task)
    streamed = opened(model, tmp_path)
    whole, found = model.state_dict(), {}
    for part in streamed.parts:
        with streamed.loaded(part):
            values = live(streamed.model)
            assert values.keys() == set(part.names)
            found |= values
        assert not live(streamed.model)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], whole[key]) for key in whole)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_buffers_that_no_file_holds_are_those_of_a_loaded_model(name: str, tmp_path: Path) -> None:
    streamed = opened(models.tiny(name), tmp_path)
    streamed.compute_buffers()
    with streamed.loaded(streamed.parts[0]):
        pass
    loaded = open_source(tmp_path / "source").load_model()
    expected, found = (dict(model.named_non_persistent_buffers()) for model in (loaded, streamed.model))
    assert expected
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_what_runs_before_the_blocks_is_the_first_part(tmp_path: Path) -> None:
    streamed = opened(models.tiny("bert"), tmp_path)
    assert {name.partition(".")[0] for name in streamed.parts[0].names} == {"embeddings"}
    assert [part.path for part in streamed.parts] == ["", *(f"encoder.layer.{index}" for index in range(3)), ""]


def test_a_tied_head_comes_with_its_table_and_stays_tied(tmp_path: Path) -> None:
    streamed = opened(models.tiny("gpt2", task="lm"), tmp_path)
    (part,) = [part for part in streamed.parts if part.holds("lm_head")]
    assert part.holds("transformer.wte")
    for _ in range(2):
        with streamed.loaded(part):
            assert streamed.model.lm_head.weight is streamed.model.transformer.wte.weight
        assert streamed.model.lm_head.weight is streamed.model.transformer.wte.weight


def test_bare_parameters_are_held_and_begin_without_values(tmp_path: Path) -> None:
    streamed = opened(models.tiny("xlnet"), tmp_path)
    assert not live(streamed.model)
    (part,) = [part for part in streamed.parts if part.holds("layer.0.rel_attn.q")]
    assert part.path == "layer.0"


def test_a_failure_inside_leaves_nothing_in_memory(tmp_path: Path) -> None:
    streamed = opened(models.tiny("bert"), tmp_path)
    with pytest.raises(KeyError), streamed.loaded(streamed.parts[0]):
        raise KeyError
    assert not live(streamed.model)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.float8_e4m3fn])
def test_a_tensor_is_read_as_it_lies(dtype: torch.dtype, tmp_path: Path) -> None:
    values = {"b": (torch.arange(24) % 5).to(dtype), "a": torch.ones(3), "empty": torch.zeros(0, 2)}
    shaped = {**values, "b": values["b"].reshape(4, 6), "single": torch.tensor(2.5)}
    save_file(shaped, tmp_path / "some.safetensors")
    places = stream.places(tmp_path / "some.safetensors")
    found = {name: place.read() for name, place in places.items()}
    assert found.keys() == shaped.keys()
    for name, tensor in shaped.items():
        assert same_bits(found[name], tensor)


def test_a_file_that_became_shorter_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file({"a": torch.ones(64)}, path)
    places = stream.places(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelError, match="cut short") as caught:
        places["a"].read()
    assert caught.value.code == "CK-M004"


def test_a_type_can_be_asked_for(tmp_path: Path) -> None:
    folder = models.write_checkpoint(models.tiny("bert"), tmp_path / "source", with_tokenizer=False)
    streamed = StreamedModel(open_source(folder), "bfloat16")
    with streamed.loaded(streamed.parts[0]):
        assert {tensor.dtype for tensor in live(streamed.model).values()} == {torch.bfloat16}


@pytest.mark.parametrize("what", ["missing", "left over", "of another shape"])
def test_files_that_do_not_fit_one_by_one_are_refused(what: str, tmp_path: Path) -> None:
    folder = models.write_checkpoint(models.tiny("bert"), tmp_path / "source", with_tokenizer=False)
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layer.1.output.dense.bias"
    if what == "missing":
        del weights[name]
    elif what == "left over":
        weights["encoder.layer.1.output.gain"] = weights[name].clone()
    else:
        weights[name] = weights[name][:-1].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=what) as caught:
        StreamedModel(open_source(folder))
    assert caught.value.code == "CK-L063"


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = models.tiny("bert")
    with torch.no_grad():
        model.encoder.layer[1].output.dense.bias[3] = float("nan")
    streamed = opened(model, tmp_path)
    with streamed.loaded(streamed.parts[0]):
        pass
    with pytest.raises(ModelError) as caught, streamed.loaded(streamed.parts[2]):
        pass
    assert caught.value.code == "CK-M014"


def test_blocks_that_share_a_tensor_are_refused() -> None:
    model = models.tiny("bert")
    surgery.share_module(model, "encoder.layer.0.output", "encoder.layer.1.output")
    with pytest.raises(ModelError) as caught:
        stream._parts(model, stream._shared_names(model))
    assert caught.value.code == "CK-L064"


def test_releasing_keeps_types_shapes_and_gradients() -> None:
    layer = nn.BatchNorm1d(4).half()
    layer.bias.requires_grad_(False)
    release(layer)
    assert {tensor.device.type for tensor in layer.state_dict().values()} == {"meta"}
    assert (layer.weight.dtype, layer.weight.requires_grad, layer.bias.requires_grad) == (torch.float16, True, False)
    assert layer.num_batches_tracked.dtype == torch.int64
