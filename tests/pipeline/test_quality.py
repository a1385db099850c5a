from __future__ import annotations

import json
from pathlib import Path

import pytest

from compresskit.checkpoint.source import open_source
from compresskit.errors import DataError, RecipeError
from compresskit.pipeline.plan import make_plan
from compresskit.pipeline.quality import measure_quality
from compresskit.recipe import Recipe
from compresskit.recipe.gates import Measured, parse_gate
from tests import models

STEPS = [{"quantization.int8": {"activations": "token"}}]


def recipe(evaluate: dict[str, object]) -> Recipe:
    return Recipe.load({"version": 1, "steps": STEPS, "evaluate": evaluate})


def test_a_language_model_is_scored_by_perplexity(tmp_path: Path) -> None:
    folder = models.write_checkpoint(models.tiny("gpt2", task="lm"), tmp_path / "model")
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "the cat sat on a mat and the dog runs in the park"}) + "\n")
    wanted = recipe({"task": "language_modelling", "data": str(texts), "max_length": 8, "stride": 4})
    found = measure_quality(wanted, open_source(str(folder)), folder)
    assert found is not None
    assert found["before"] == found["after"] > 1
    assert (found["metric"], found["unit"], found["higher_is_better"]) == ("perplexity", "", False)
    assert found["details"]["bits_per_byte"] > 0
    # A perplexity is no score of 100: points of it mean nothing, a ratio does.
    measured = Measured(found["after"], found["before"], "plain")
    assert parse_gate("quality", "<= 1.05x").check(measured).passed
    with pytest.raises(RecipeError):
        parse_gate("quality", ">= -1.0pp").check(measured)


def test_options_of_a_task_stand_in_the_recipe_and_its_file(tmp_path: Path) -> None:
    evaluate = {"task": "classification", "data": "a.tsv", "train": "b.tsv", "train_samples": 50}
    made = recipe(dict(evaluate))
    assert made.to_dict()["evaluate"] == evaluate
    assert Recipe.from_text(made.to_yaml()) == made
    with pytest.raises(RecipeError):
        recipe({"task": "classification", "data": "a.tsv", "tarin": "b.tsv"})


def test_a_missing_training_file_is_missed_before_anything_runs(tmp_path: Path) -> None:
    folder = models.write_checkpoint(models.tiny("bert"), tmp_path / "model")
    test = tmp_path / "a.tsv"
    test.write_text("text\tlabel\na\tb\n")
    made = recipe({"task": "classification", "data": str(test), "train": str(tmp_path / "none.tsv")})
    source = open_source(str(folder))
    with pytest.raises(DataError) as caught:
        make_plan(source.load_model(), made, source, strict=False)
    assert caught.value.code == "CK-D001"
    assert "evaluate.train" in caught.value.where
