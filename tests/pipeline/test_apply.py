"""Whole runs on a tiny model: the artifact, its report, gates, resuming, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import compresskit
from compresskit import pipeline
from compresskit.errors import CompressKitError, DataError, GateError, ModelError, UsageError
from tests import models
from tests.pipeline.conftest import recipe

STEPS = recipe({"pruning.ffn": {"keep": 0.5}}, "quantization.int8", {"quantization.embedding": {"bits": 8}})


@pytest.fixture(scope="module")
def done(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pipeline.Result]:
    output = tmp_path_factory.mktemp("done") / "out"
    return output, pipeline.apply(source, STEPS, output)


def test_result_says_what_the_files_say(done: tuple[Path, pipeline.Result], source: Path) -> None:
    output, result = done
    content = result.to_dict()
    assert json.loads((output / "report.json").read_text())["steps"] == json.loads(json.dumps(content["steps"]))
    assert result.reload_max_abs_diff == 0.0
    assert not result.native
    served = [*output.glob("*.safetensors"), *output.glob("tokenizer*.json"), output / "config.json"]
    assert result.after["disk_bytes"] == sum(file.stat().st_size for file in served)
    assert result.after["disk_bytes"] < 0.5 * result.before["disk_bytes"]
    assert [step["method"] for step in result.steps] == ["pruning.ffn", "quantization.int8", "quantization.embedding"]
    for step in result.steps:
        assert step["sites"]
        assert {"parameters", "bytes", "seconds", "fidelity"} <= set(step)
    assert 0.9 < result.fidelity["cosine_min"] <= result.fidelity["cosine_mean"] <= 1.0
    assert set(result.fidelity["domains"]) == {"documentation", "everyday"}


def test_folder_is_complete_and_nothing_is_left_beside_it(done: tuple[Path, pipeline.Result]) -> None:
    output, _ = done
    names = {file.name for file in output.iterdir()}
    assert {"config.json", "model.safetensors", "recipe.yaml", "report.json", "README.md", "manifest.json"} <= names
    assert [item.name for item in output.parent.iterdir()] == [output.name]
    card = (output / "README.md").read_text()
    assert "import compresskit" in card
    assert str(output) not in (output / "recipe.yaml").read_text()


def test_reloads_plainly_and_equals_the_live_model(done: tuple[Path, pipeline.Result]) -> None:
    output, result = done
    again = transformers.AutoModel.from_pretrained(output)
    batch = models.inputs("bert", padded=True)
    assert result.model is not None
    assert torch.equal(models.output(again.eval(), batch), models.output(result.model, batch))
    assert pipeline.verify(output).reload_max_abs_diff == 0.0


def test_resolved_recipe_gives_the_same_weights_again(
    done: tuple[Path, pipeline.Result], source: Path, tmp_path: Path
) -> None:
    output, _ = done
    pipeline.apply(source, output / "recipe.yaml", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()


def test_loaded_model_in_python(source: Path) -> None:
    model = models.tiny("gpt2", task="lm")
    result = compresskit.apply(model, recipe({"pruning.ffn": {"keep": 0.5}}), tokenizer=models.tokenizer())
    assert result.output is None
    assert result.model is model
    assert {"kl_mean", "top1_agreement"} <= set(result.fidelity)
    with pytest.raises(UsageError) as caught:
        compresskit.apply(models.tiny("bert"), STEPS, source.parent / "x")
    assert caught.value.code == "CK-U014"


def test_f09_existing_output_is_kept(done: tuple[Path, pipeline.Result], source: Path) -> None:
    output, _ = done
    before = (output / "manifest.json").read_bytes()
    with pytest.raises(UsageError) as caught:
        pipeline.apply(source, STEPS, output)
    assert caught.value.code == "CK-I001"
    assert (output / "manifest.json").read_bytes() == before


def test_f43_the_same_recipe_again_finds_no_site(done: tuple[Path, pipeline.Result], tmp_path: Path) -> None:
    output, _ = done
    with pytest.raises(CompressKitError) as caught:
        pipeline.apply(output, recipe("quantization.int8"), tmp_path / "twice")
    assert caught.value.code == "CK-T010"
    assert not (tmp_path / "twice").exists()


def test_f56_missed_gate_publishes_nothing(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    steps = recipe("quantization.int8", gates={"size": "<= 0.01x"}, export={"onnx": {"profile": "fast"}})
    with pytest.raises(GateError) as caught:
        pipeline.apply(source, steps, output)
    assert caught.value.exit_code == 1
    assert not output.exists()
    kept = json.loads((tmp_path / "out.rejected" / "report.json").read_text())
    assert [gate["passed"] for gate in kept["gates"]] == [False]
    assert not list(tmp_path.rglob("*.onnx")), "nothing is exported for nothing"


def test_gates_that_hold_are_reported(source: Path, tmp_path: Path) -> None:
    steps = recipe("quantization.int8", gates={"size": "<= 0.9x", "fidelity": ">= -5pp"})
    result = pipeline.apply(source, steps, tmp_path / "out", options=pipeline.Options(max_drop=5.0))
    assert [gate["passed"] for gate in result.gates] == [True, True, True]


class Stop(BaseException):
    """Stands for a kill between two steps."""


def _stopping_after(count: int) -> pipeline.Listener:
    seen: list[dict[str, Any]] = []

    def step(row: dict[str, Any]) -> None:
        seen.append(row)
        if len(seen) == count:
            raise Stop

    return pipeline.Listener(step=step)


def test_resume_goes_on_after_the_last_finished_step(
    done: tuple[Path, pipeline.Result], source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with pytest.raises(Stop):
        pipeline.apply(source, STEPS, output, listener=_stopping_after(2))
    assert not output.exists()
    rows: list[dict[str, Any]] = []
    result = pipeline.apply(
        source, STEPS, output, options=pipeline.Options(resume=True), listener=pipeline.Listener(step=rows.append)
    )
    assert [row["method"] for row in rows] == ["quantization.embedding"], "finished steps are not run again"
    assert len(result.steps) == 3
    assert (output / "model.safetensors").read_bytes() == (done[0] / "model.safetensors").read_bytes()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out"]


def test_f54_resume_with_another_recipe_is_refused(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(Stop):
        pipeline.apply(source, STEPS, output, listener=_stopping_after(1))
    other = recipe({"pruning.ffn": {"keep": 0.25}}, "quantization.int8")
    with pytest.raises(UsageError) as caught:
        pipeline.apply(source, other, output, options=pipeline.Options(resume=True))
    assert caught.value.code == "CK-U013"
    assert "recipe" in caught.value.why
    with pytest.raises(UsageError) as caught:
        pipeline.apply(source, STEPS, output, options=pipeline.Options(resume=True, dtype="bfloat16"))
    assert caught.value.why == "dtype: None then, bfloat16 now"
    with pytest.raises(UsageError) as caught:
        pipeline.apply(source, other, tmp_path / "never", options=pipeline.Options(resume=True))
    assert caught.value.code == "CK-U012"


def test_the_space_that_a_wider_type_takes_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = models.write_checkpoint(models.tiny("bert").half(), tmp_path / "half", with_tokenizer=False)

    def asked(output: Path, needed: int) -> None:
        raise Stop(needed)

    monkeypatch.setattr("compresskit.pipeline.run.check_free_space", asked)
    with pytest.raises(Stop) as caught:
        pipeline.apply(half, STEPS, tmp_path / "out", options=pipeline.Options(dtype="float32"))
    assert caught.value.args[0] > 2 * (half / "model.safetensors").stat().st_size


def test_a_run_without_output_leaves_nothing_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(Stop):
        pipeline.apply(models.tiny("bert"), STEPS, listener=_stopping_after(1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["tpu", "mps", "cuda:99"])
def test_a_device_that_is_not_there(source: Path, tmp_path: Path, device: str) -> None:
    with pytest.raises(UsageError) as caught:
        pipeline.apply(source, STEPS, tmp_path / "out", options=pipeline.Options(device=device))
    assert caught.value.code == "CK-U018"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["teacher", "calibration"])
def test_f54_resume_with_another_teacher_or_data_is_refused(source: Path, tmp_path: Path, what: str) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one line\nanother line\n" * 20)
    teacher = models.write_checkpoint(models.tiny("bert"), tmp_path / "teacher")
    same = recipe({"pruning.ffn": {"keep": 0.5}}, "quantization.int8", teacher=str(teacher))
    same["calibration"] = {"data": str(texts), "samples": 8}
    output = tmp_path / "out"
    with pytest.raises(Stop):
        pipeline.apply(source, same, output, listener=_stopping_after(1))
    if what == "teacher":
        shutil.rmtree(teacher)
        models.write_checkpoint(models.tiny("bert", seed=5), teacher)
    else:
        texts.write_text("other words\n" * 40)
    with pytest.raises(UsageError) as caught:
        pipeline.apply(source, same, output, options=pipeline.Options(resume=True))
    assert caught.value.code == "CK-U013"
    assert what in caught.value.why
    assert caught.value.why.count(" then, ") == 1


def test_f17_source_that_changes_meanwhile(tmp_path: Path) -> None:
    source = models.write_checkpoint(models.tiny("bert"), tmp_path / "source")

    def touch(row: dict[str, Any]) -> None:
        weights = bytearray((source / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (source / "model.safetensors").write_bytes(weights)

    with pytest.raises(ModelError):
        pipeline.apply(source, recipe("quantization.int8"), tmp_path / "out", listener=pipeline.Listener(step=touch))
    assert not (tmp_path / "out").exists()


def test_model_without_tokenizer_says_so(tmp_path: Path) -> None:
    source = models.write_checkpoint(models.tiny("llama", task="lm"), tmp_path / "source", with_tokenizer=False)
    result = pipeline.apply(source, recipe("quantization.int8"), tmp_path / "out")
    assert any("random tokens" in warning for warning in result.warnings)
    assert os.path.exists(tmp_path / "out" / "manifest.json")


def test_stock_result_needs_no_compresskit(source: Path, tmp_path: Path) -> None:
    result = pipeline.apply(source, recipe({"pruning.layers": {"drop": [1]}}), tmp_path / "out")
    assert result.native
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["num_hidden_layers"] == models.LAYERS - 1


def test_f53_a_finished_step_that_was_changed_is_not_resumed_from(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(Stop):
        pipeline.apply(source, STEPS, output, listener=_stopping_after(2))
    weights = tmp_path / "out.ck-work" / "step-2" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CompressKitError, match=r"model\.safetensors"):
        pipeline.apply(source, STEPS, output, options=pipeline.Options(resume=True))
    assert not output.exists()


def test_f36_a_model_on_the_meta_device_is_refused(source: Path) -> None:
    with torch.device("meta"):
        empty = type(models.tiny("bert"))(models.config("bert"))
    with pytest.raises(ModelError) as caught:
        pipeline.apply(empty, STEPS)
    assert caught.value.code == "CK-I016"


@pytest.mark.parametrize(
    "more",
    [
        {"evaluate": {"task": "sts", "data": "nowhere.tsv"}},
        {"data": {"train": "nowhere.tsv"}},
        {"calibration": {"data": "nowhere.txt"}},
    ],
    ids=["evaluate", "data", "calibration"],
)
def test_missing_data_is_found_by_the_plan(source: Path, more: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        pipeline.plan(source, {**STEPS, **more})
    assert caught.value.code == "CK-D001"
    assert "nowhere" in caught.value.where


def test_the_recipes_teacher_teaches(source: Path, tmp_path: Path) -> None:
    """A student that learns from another model ends nearer to it than one that learns from itself."""
    other = models.write_checkpoint(models.tiny("bert", seed=3), tmp_path / "other")
    training = recipe({"distillation.embeddings": {"steps": 30, "batch": 8, "lr": 3e-3}})
    own = pipeline.apply(source, {**training, "steps": [{"pruning.ffn": {"keep": 0.5}}, *training["steps"]]})
    taught = pipeline.apply(source, {**training, "teacher": str(other)})
    assert own.model is not None
    assert taught.model is not None
    batch = models.inputs("bert", padded=True)
    target = models.tiny("bert", seed=3)
    assert models.max_difference(taught.model, target, batch) < models.max_difference(own.model, target, batch)


@pytest.mark.timeout(600)
def test_export_of_the_recipe_lies_in_the_checkpoint(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    content = recipe({"pruning.ffn": {"keep": 0.5}}, export={"onnx": {"profile": "portable"}})
    result = pipeline.apply(source, content, output)
    assert result.onnx is not None
    file = output / "onnx" / "model.onnx"
    assert result.onnx["bytes"] == file.stat().st_size
    assert result.onnx["parity"]["max_difference"] <= 1e-4
    assert json.loads((output / "report.json").read_text())["onnx"]["output"] == "onnx/model.onnx"
    assert pipeline.verify(output).reload_max_abs_diff == 0.0


def test_files_left_aside_are_mentioned(tmp_path: Path) -> None:
    folder = models.write_checkpoint(models.tiny("bert"), tmp_path / "source")
    (folder / "optimizer.pt").write_bytes(b"no pickle is ever opened")
    result = pipeline.apply(folder, recipe({"pruning.ffn": {"keep": 0.5}}), tmp_path / "out")
    assert any("optimizer.pt" in warning for warning in result.warnings)
