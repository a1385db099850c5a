"""Runs with little memory: the same tensors as any other run, one block at a time, and nothing by halves."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from compresskit import pipeline, registry
from compresskit.calibrate import blocks
from compresskit.checkpoint import save
from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.shards import ShardWriter
from compresskit.checkpoint.source import open_source
from compresskit.checkpoint.stream import StreamedModel
from compresskit.core.context import Batch, Context
from compresskit.core.targets import resolve
from compresskit.errors import GateError, ModelError, RecipeError, ResourceError, UsageError
from compresskit.pipeline import Options
from tests import models
from tests.pipeline.conftest import recipe

LOW = Options(low_memory=True)
INT4 = recipe("quantization.rtn", {"quantization.embedding": {"bits": 4}})
STREAMING = sorted(name for name, method in registry.methods().items() if method.streams == "site")


def same_tensors(first: Path, second: Path) -> bool:
    one, other = load_model(first).state_dict(), load_model(second).state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_result_is_that_of_an_ordinary_run(name: str, tmp_path: Path) -> None:
    source = models.write_checkpoint(models.tiny(name, task="lm"), tmp_path / "source")
    opened = open_source(source)
    whole = pipeline.apply(opened.load_model(), INT4, tokenizer=opened.load_tokenizer())
    assert whole.model is not None
    save.save_checkpoint(whole.model, tmp_path / "whole", source=opened)
    parts = pipeline.apply(source, INT4, tmp_path / "parts", options=LOW)
    assert same_tensors(tmp_path / "whole", tmp_path / "parts")
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("whole", "parts")]
    assert configs[0] == configs[1]
    rows = [[(row["bytes"], row["parameters"], row["sites"]) for row in each.steps] for each in (whole, parts)]
    assert rows[0] == rows[1]
    assert (parts.model, parts.reload_max_abs_diff, parts.fidelity) == (None, None, {})
    assert any("not run" in warning for warning in parts.warnings)
    assert not save.verify(tmp_path / "parts").native
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "source", "whole"]


@pytest.mark.parametrize("name", STREAMING)
def test_methods_that_stream_change_each_site_alike_whatever_else_is_in_memory(name: str, tmp_path: Path) -> None:
    if registry.method(name).package:
        pytest.importorskip(registry.method(name).package)
    source = open_source(models.write_checkpoint(models.tiny("bert"), tmp_path / "source", with_tokenizer=False))
    method = registry.method(name).model_validate({})
    whole, streamed = source.load_model(), StreamedModel(source)
    sites = resolve(whole, method).sites
    context = Context()
    method.apply(whole, sites, context)
    found: dict[str, Tensor] = {}
    for part in streamed.parts:
        with streamed.loaded(part):
            own = [site for site in sites if part.holds(site.path)]
            if own:
                method.apply(streamed.model, own, Context())
            found |= {key: value for key, value in streamed.model.state_dict().items() if value.device.type != "meta"}
    expected = whole.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert all("bytes" in context.details[site.path] for site in sites)


REST = {
    "bert": "quantization.static_int8",
    "gpt2": "quantization.awq",
    "llama": "quantization.smoothquant",
    "xlnet": "quantization.residual",  # and matrices that are bare parameters
}


@pytest.mark.parametrize("name", REST)
def test_methods_fitted_to_data_give_what_an_ordinary_run_gives(name: str, tmp_path: Path) -> None:
    source = models.write_checkpoint(models.tiny(name), tmp_path / "source")
    opened = open_source(source)
    # The first sees float networks behind compressed attention, the second all attention compressed.
    steps = recipe({"quantization.embedding": {}}, {"quantization.gptq": {"targets": ["*att*"]}}, REST[name])
    whole = pipeline.apply(opened.load_model(), steps, tokenizer=opened.load_tokenizer())
    parts = pipeline.apply(source, steps, tmp_path / "parts", options=LOW)
    assert whole.model is not None
    one, other = whole.model.state_dict(), load_model(tmp_path / "parts").state_dict()
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    rows = [[(row["bytes"], row["sites"], row["details"]) for row in each.steps] for each in (whole, parts)]
    assert rows[0] == rows[1]


def test_every_method_that_streams_by_block_is_compared() -> None:
    fitted = {name for name, method in registry.methods().items() if method.streams == "block"}
    assert fitted == {"quantization.gptq", *REST.values()}
    assert all(registry.method(name).walk == "block" for name in fitted)


def held_bytes() -> int:
    """Bytes of all tensors that are alive in this process, each storage once."""
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, Parameter) and thing.device.type == "cpu":
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def test_no_more_than_a_part_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.tiny("gpt2", task="lm", n_layer=12)
    source = models.write_checkpoint(model, tmp_path / "source")
    streamed = StreamedModel(open_source(source))
    largest = max(part.bytes for part in streamed.parts)
    weights = sum(part.bytes for part in streamed.parts)
    del model, streamed
    before, seen = held_bytes(), []
    plain = ShardWriter.write

    def watched(self: ShardWriter) -> None:
        if len(self.written) % 5 == 0:
            seen.append(held_bytes() - before)
        plain(self)

    monkeypatch.setattr(ShardWriter, "write", watched)
    pipeline.apply(source, INT4, tmp_path / "out", options=LOW)
    assert len(seen) == 3
    assert max(seen) <= 1.2 * largest < weights / 8


def test_no_more_than_a_part_is_in_memory_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = models.write_checkpoint(models.tiny("llama", num_hidden_layers=6), tmp_path / "source")
    largest = max(part.bytes for part in StreamedModel(open_source(source)).parts)
    plain, seen = blocks.run, []

    def watched(model: PreTrainedModel, batch: Batch) -> Any:
        weights = {id(each): each.nbytes for each in model.parameters() if each.device.type != "meta"}
        seen.append((sum(weights.values()), sum(each.nbytes for each in model.parameters())))
        return plain(model, batch)

    monkeypatch.setattr(blocks, "run", watched)
    pipeline.apply(source, recipe("quantization.gptq"), tmp_path / "out", options=LOW)
    assert len(seen) > 6 * 4
    assert 0 < max(held for held, _ in seen) <= largest < seen[0][1] / 4


@pytest.mark.parametrize(
    ("asked", "options", "why"),
    [
        (recipe("quantization.rtn", "pruning.layers"), LOW, "step 2 .pruning.layers."),
        (recipe({"quantization.gptq": {"targets": ["encoder*", "pooler"]}}), LOW, "pooler.dense, outside"),
        (recipe({"quantization.rtn": {"recover": {"distillation.logits": {}}}}), LOW, "step 1"),
        ({**INT4, "export": {"onnx": {"profile": "fast"}}}, LOW, "export"),
        ({**INT4, "gates": {"fidelity": ">= 90%"}}, LOW, "fidelity"),
        (INT4, Options(low_memory=True, resume=True), "resumed"),
        (INT4, Options(low_memory=True, device="cuda"), "CPU"),
        (INT4, Options(low_memory=True, max_drop=1.0), "loss of quality"),
    ],
    ids=["whole", "outside", "recovery", "export", "gate", "resume", "device", "max-drop"],
)
def test_what_needs_the_whole_model_is_refused_by_the_plan(
    source: Path, asked: dict[str, Any], options: Options, why: str
) -> None:
    with pytest.raises(RecipeError, match=why) as caught:
        pipeline.plan(source, asked, options=options)
    assert caught.value.code == "CK-L062"


@pytest.mark.parametrize(("name", "why"), [("t5", "more than one stack"), ("albert", "several times")])
def test_blocks_that_one_walk_does_not_pass_are_refused(name: str, why: str, tmp_path: Path) -> None:
    source = models.write_checkpoint(models.tiny(name), tmp_path / "source", with_tokenizer=False)
    with pytest.raises(RecipeError, match=why) as caught:
        pipeline.plan(source, recipe("quantization.gptq"), options=LOW)
    assert caught.value.code == "CK-L062"


def test_the_plan_names_the_same_sites(source: Path) -> None:
    plans = [pipeline.plan(source, INT4, options=options) for options in (Options(), LOW)]
    assert [step.sites for step in plans[0].steps] == [step.sites for step in plans[1].steps]
    assert plans[1].predicted_bytes is None


def test_a_full_disk_in_the_middle_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CK_FAULT", "part.2.finished:enospc")
    with pytest.raises(ResourceError) as caught:
        pipeline.apply(source, recipe("quantization.gptq"), tmp_path / "out", options=LOW)
    assert caught.value.code == "CK-I007"
    assert list(tmp_path.iterdir()) == []


def test_a_gate_on_size_is_kept(source: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError):
        pipeline.apply(source, {**INT4, "gates": {"size": "<= 0.01x"}}, tmp_path / "out", options=LOW)
    assert [path.name for path in tmp_path.iterdir()] == ["out.rejected"]


def test_nothing_compressed_is_an_error(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        pipeline.apply(source, recipe({"quantization.rtn": {"bits": 16}}), tmp_path / "out", options=LOW)
    assert caught.value.code == "CK-L065"


def test_without_an_output_there_is_nothing_to_give(source: Path) -> None:
    with pytest.raises(UsageError) as caught:
        pipeline.apply(source, INT4, options=LOW)
    assert caught.value.code == "CK-U015"
