"""The recipes of MiDTD run from a folder with a student, a teacher and data, end to end."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

import compresskit
from compresskit.checkpoint.load import load_model
from compresskit.recipe import Recipe
from compresskit.report.apply_report import read_report
from compresskit.report.page import apply_page
from compresskit.tasks.relation_extraction.build import new_model
from compresskit.tasks.relation_extraction.readers import read_instances
from tests import models
from tests.tasks.relation_extraction.examples import RELATIONS, records, write

FOLDER = Path(__file__).parents[2] / "recipes" / "midtd"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SIZES: dict[str, dict[str, Any]] = {
    "pcnn": {"filters": 8},
    "bilstm": {"hidden": 8, "word_size": 8},
    "bert": {"trainable_layers": 1},
}


def test_there_is_one_for_each_model() -> None:
    assert set(NAMES) == set(SIZES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    recipe = Recipe.load(path)
    assert Recipe.from_text(recipe.to_yaml()) == recipe
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")
    assert [step.method.full_name() for step in recipe.steps] == ["distillation.midtd"]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_a_folder(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    plain = write(tmp_path / "plain.jsonl", records(24))
    for split in ("train", "dev", "test"):
        (tmp_path / "data" / f"{split}.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    settings = dict(SIZES[name])
    if name == "bert":
        models.tiny("bert").save_pretrained(tmp_path / "encoder")
        models.tokenizer().save_pretrained(tmp_path / "encoder")
        settings["encoder"] = tmp_path / "encoder"
    for seed, role in enumerate(("student", "teacher")):
        new_model(name, read_instances(plain), RELATIONS, tmp_path / role, seed=seed, **settings)
    monkeypatch.chdir(tmp_path)
    content = Recipe.load(FOLDER / f"{name}.yaml").to_dict()
    content["steps"][0]["distillation.midtd"].update({"epochs": 2, "batch": 8})
    result = compresskit.apply(None, content, "out")
    (note,) = result.steps[0]["details"].values()
    assert len(note["generations"][0]["losses"]) == 2
    assert result.quality is not None
    assert result.quality["metric"] == "pr_auc"
    assert {"temperature", "nll_fitted", "pr_curve"} <= set(result.quality["details"])
    assert ">Precision and recall<" in apply_page(read_report(tmp_path / "out"))
    again = load_model(tmp_path / "out")
    before = load_model(tmp_path / "student")
    assert type(again) is type(before)
    changed = {key for key, tensor in again.state_dict().items() if not tensor.equal(before.state_dict()[key])}
    assert "classifier.weight" in changed
