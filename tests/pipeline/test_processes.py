"""A recipe in two processes: both run the steps and train together, and the first one alone writes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compresskit import pipeline
from compresskit.checkpoint import resume
from compresskit.core import processes
from compresskit.errors import ResourceError, UsageError
from compresskit.pipeline import run, workspace
from compresskit.train.loop import Loop
from tests import models
from tests.children import forked, statuses, together
from tests.pipeline.conftest import recipe


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("the second process writes")


def test_a_recipe_in_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = models.write_checkpoint(models.tiny("bert"), tmp_path / "source")
    monkeypatch.setattr(run, "publish", lambda result, *_: result.model.save_pretrained(result.output))

    def recipe_of(accumulation: int) -> dict[str, Any]:
        training = {"steps": 3, "batch": 8, "texts": 40, "max_length": 12, "accumulation": accumulation}
        return recipe({"pruning.layers": {"drop": [1]}}, {"distillation.embeddings": training})

    def apply() -> None:
        if processes.index():
            for place, name in ((run, "publish"), (workspace, "save_checkpoint"), (resume, "whole_folder")):
                monkeypatch.setattr(place, name, refuse)
        result = pipeline.apply(source, recipe_of(1), tmp_path / "two")
        assert result.model is not None
        processes.wait()
        with pytest.raises(ResourceError if processes.index() else UsageError):
            pipeline.apply(source, recipe_of(1), tmp_path / "two")

    # First, so that the children find the built-in texts gathered.
    pipeline.apply(source, recipe_of(2), tmp_path / "one")
    assert together(2, apply) == [0, 0]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
    assert not torch.equal(
        one["encoder.layer.0.output.dense.weight"],
        load_file(source / "model.safetensors")["encoder.layer.0.output.dense.weight"],
    )
    assert sorted(path.name for path in tmp_path.iterdir() if "work" in path.name) == []


def test_a_run_killed_in_training_goes_on_from_what_it_saved(tmp_path: Path) -> None:
    source = models.write_checkpoint(models.tiny("bert"), tmp_path / "source")
    given = recipe(
        {"distillation.embeddings": {"steps": 5, "batch": 8, "texts": 40, "max_length": 12, "save_every": 2}}
    )
    given["teacher"] = str(models.write_checkpoint(models.tiny("bert", seed=1), tmp_path / "teacher"))

    def apply(output: str, **options: Any) -> Any:
        return pipeline.apply(source, given, tmp_path / output, options=pipeline.Options(**options))

    def die(self: Loop, loss: float) -> None:
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        observe(self, loss)

    def killed() -> None:
        Loop.observe = die  # type: ignore[method-assign]
        apply("out")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "publish", lambda result, *_: result.model.save_pretrained(result.output))
        observe = Loop.observe
        assert statuses([forked(killed)]) == [-signal.SIGKILL]
        resumed = apply("out", resume=True)
        assert "goes on from step 2" in resumed.warnings[-1]
        whole = apply("whole")
    assert not any("goes on" in warning for warning in whole.warnings)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole"))
    assert all(torch.equal(one[name], two[name]) for name in one)
