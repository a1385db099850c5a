"""Relation extraction as a task: from a folder of data to a score, its resamples, and the two ways to run it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from compresskit.bench import quality
from compresskit.bench.options import BenchOptions
from compresskit.errors import DataError, RecipeError
from compresskit.tasks import TASKS, Facts, Options, measure
from compresskit.tasks.relation_extraction import collate_relations, encode_instances, evaluate, read_instances
from compresskit.tasks.relation_extraction.build import new_model
from compresskit.tasks.relation_extraction.evaluation import fit_temperature
from tests import models
from tests.tasks.relation_extraction.examples import RELATIONS, records, write

TASK = TASKS["relation_extraction"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder / "test.jsonl", records(48, seed=1))
    write(folder / "dev.jsonl", records(24, seed=2))
    return folder


@pytest.fixture(scope="module")
def pcnn(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pcnn")
    new_model("pcnn", read_instances(data / "test.jsonl"), RELATIONS, folder, filters=8)
    return folder


def loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def logits_of(model: Any, tokenizer: Any, path: Path, *, marked: bool) -> np.ndarray:
    instances = read_instances(path)
    with torch.no_grad():
        batch = collate_relations(encode_instances(instances, tokenizer, 128, marked=marked))
        return np.asarray(model(**batch).logits.numpy())


def test_a_folder_is_scored_and_calibrated_on_its_development_part(data: Path, pcnn: Path) -> None:
    model, tokenizer = loaded(pcnn)
    score = measure(model, tokenizer, SimpleNamespace(task=TASK.name, data=str(data), samples=None))
    test, dev = (read_instances(data / f"{name}.jsonl") for name in ("test", "dev"))
    gold, dev_gold = (np.array([RELATIONS[item.relation] for item in part]) for part in (test, dev))
    logits = logits_of(model, tokenizer, data / "test.jsonl", marked=False)
    temperature = fit_temperature(logits_of(model, tokenizer, data / "dev.jsonl", marked=False), dev_gold)
    expected = evaluate(logits, gold, [item.pair for item in test], temperature)
    assert score.value == pytest.approx(expected.pop("auc"), abs=1e-3)
    assert {name: score.details[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert (score.rows, score.details["sentences"]) == (8, 48)
    assert score.details["pr_curve"][-1][0] == 1
    alone = measure(model, tokenizer, SimpleNamespace(task=TASK.name, data=str(data / "test.jsonl"), samples=12))
    assert alone.rows == 2
    assert "temperature" not in alone.details


def test_bags_are_drawn_as_if_they_stood_there_several_times(data: Path, pcnn: Path) -> None:
    model, tokenizer = loaded(pcnn)
    settings = SimpleNamespace(task=TASK.name, data=str(data), samples=None)
    first = measure(model, tokenizer, settings)
    with torch.no_grad():
        model.classifier.bias[1] += 1.0
    second = measure(model, tokenizer, settings)
    picks = quality.draw(first.rows, 20)
    half = first.statistics.shape[1] // 2
    for row, value in zip(picks, TASK.values(first.statistics, picks), strict=True):
        drawn = first.statistics[row]
        expected = average_precision_score(drawn[:, half:].ravel(), drawn[:, :half].ravel())
        assert value == pytest.approx(100 * expected)
    assert TASK.values(first.statistics, np.arange(first.rows)[None])[0] == pytest.approx(first.value)
    compared = quality.against(first, second)
    assert compared["ci"][0] <= compared["difference"] <= compared["ci"][1]
    assert quality.against(first, first)["ci"] == [0, 0]
    record = quality.to_record(second, compared)
    assert quality.recomputed(record)[0] == pytest.approx(second.value)


def test_entity_starts_see_their_markers_in_the_worker_of_a_benchmark(data: Path, tmp_path: Path) -> None:
    from compresskit.bench.engines import engine
    from compresskit.bench.engines.base import Settings

    encoder = models.write_checkpoint(models.tiny("bert"), tmp_path / "encoder")
    new_model("bert", read_instances(data / "test.jsonl"), RELATIONS, tmp_path / "model", encoder=encoder)
    model, tokenizer = loaded(tmp_path / "model")
    workload = quality.prepare(TASK.name, data, tokenizer, folder=tmp_path / "model")
    running = engine("torch")
    running.load(tmp_path / "model", Settings(threads=1))
    score = quality.score(workload, [running.run(batch) for batch in workload.batches])
    expected = logits_of(model, tokenizer, data / "test.jsonl", marked=True)
    assert score.logits is not None
    np.testing.assert_allclose(score.logits, expected, atol=1e-5)


def test_what_cannot_be_scored_is_refused(data: Path, pcnn: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded(pcnn)
    facts = Facts.of(model.config.to_dict(), None, type(model).__name__)
    with pytest.raises(DataError, match="classifier of relations"):
        TASK.prepare(data, tokenizer, Facts(architecture="BertModel"), Options())
    with pytest.raises(DataError) as caught:
        TASK.prepare(tmp_path, tokenizer, facts, Options())
    assert caught.value.code == "CK-D001"
    none = write(tmp_path / "none.jsonl", [row | {"relation": "NA"} for row in records(6)])
    with pytest.raises(DataError, match="nothing to find"):
        TASK.prepare(none, tokenizer, facts, Options())
    with pytest.raises(DataError, match="isn't one of the model's"):
        TASK.prepare(write(none, [records(1)[0] | {"relation": "likes"}]), tokenizer, facts, Options())


def test_a_benchmark_looks_its_task_up_before_anything_else(data: Path) -> None:
    with pytest.raises(RecipeError, match="no task") as caught:
        BenchOptions(("nowhere",), task="relation_extracton", data=data)
    assert "did you mean 'relation_extraction'?" in caught.value.fix
    (data / "empty").mkdir()
    for task, name in (("sts", "none.tsv"), (TASK.name, "empty")):
        with pytest.raises(DataError) as missing:
            BenchOptions(("nowhere",), task=task, data=data / name)
        assert missing.value.code == "CK-D001"
