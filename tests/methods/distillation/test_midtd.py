"""MiDTD as a method: it learns, its presets, bags, generations, and what it refuses."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import BertForSequenceClassification

from compresskit import registry
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.errors import DataError, RecipeError
from compresskit.methods.distillation import midtd
from compresskit.methods.distillation.midtd import PRESETS, MiDTD
from compresskit.recipe import TrainingData
from compresskit.tasks.relation_extraction.build import new_model
from compresskit.tasks.relation_extraction.encoding import Vocabulary
from compresskit.tasks.relation_extraction.readers import read_instances
from compresskit.train.policies import Band, BySoftness, Exponential, Fixed
from tests import models
from tests.tasks.relation_extraction.examples import RELATIONS, records, write

QUICK = {"epochs": 6, "batch": 8, "lr": 1e-2}


def rows(count: int = 48) -> list[dict[str, str]]:
    rng = random.Random(0)
    words = {"good": ["good", "like"], "bad": ["bad", "not"]}
    found = []
    for number in range(count):
        label = ("good", "bad")[number % 2]
        found.append({"text": f"the {rng.choice(words[label])} book", "label": label, "user": f"{label}{number // 8}"})
    return found


def table(path: Path, content: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return str(path)


def classifier(seed: int = 0, labels: tuple[str, ...] = ("bad", "good")) -> Any:
    config = models.config("bert")
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: number for number, name in enumerate(labels)}
    torch.manual_seed(seed)
    return BertForSequenceClassification(config).eval()


def context(tmp_path: Path, teacher: Any, train: str, **more: Any) -> Context:
    settings = TrainingData(train=train, dev=train, **more)
    return Context(tokenizer=models.tokenizer(), teacher=lambda: teacher, data=settings, work=tmp_path / "work")


def apply(method: MiDTD, model: Any, given: Context) -> dict[str, Any]:
    sites = resolve(model, method).sites
    method.apply(model, sites, given)
    (note,) = given.details.values()
    return note


def test_importable_names_and_registration() -> None:
    assert registry.method("distillation.midtd") is MiDTD
    z = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    assert midtd.fuse_targets(z, [0, 0], 1.0).tolist() == [[1, 2], [1, 2]]
    assert midtd.temperatures(z, 0.0, 0.0, 0.5)[0].tolist() == [1, 1]


def test_presets() -> None:
    paper = MiDTD(preset="paper")
    assert paper.temperature_policy() == Exponential(0.7, 0.45, 0.5)
    assert (paper.setting("rho"), paper.setting("alpha"), paper.squared) == (0.5, 0.8, False)
    assert MiDTD(preset="nominal").temperature_policy() == Exponential(0.7, -0.45, 300.0)
    assert MiDTD().temperature_policy() == BySoftness(0.5, Band(0.05, 0.3), Exponential(0.7, 0.0, "auto"))
    assert MiDTD(preset="paper", mu_student=0.0, rho=0.0).setting("rho") == 0.0
    assert MiDTD(policy="fixed", temperature=4.0).temperature_policy() == Fixed(4.0)
    assert set(PRESETS["paper"]) == set(PRESETS["default"]) == set(PRESETS["nominal"])


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_student_follows_a_teacher(preset: str, tmp_path: Path) -> None:
    train = table(tmp_path / "train.jsonl", rows())
    teacher, student = classifier(1), classifier(2)
    options = {**QUICK, "lr": 1e-3}
    apply(MiDTD(**options, alpha=0.0), teacher, context(tmp_path, classifier(1), train))
    note = apply(MiDTD(preset=preset, **options), student, context(tmp_path, teacher, train, group="user"))
    assert note["generations"][0]["scores"][-1] == 1.0
    assert not student.training
    assert note["rows"] == 48
    assert 0 <= note["generations"][0]["target_entropy"]["p5"] <= note["generations"][0]["target_entropy"]["p95"]


@pytest.mark.parametrize("policy", ["exp", "range", "fixed", "standardized", "dtkd", "annealed", "curriculum"])
def test_every_policy_trains(policy: str, tmp_path: Path) -> None:
    train = table(tmp_path / "train.jsonl", rows(16))
    student = classifier(2)
    before = copy.deepcopy(student.state_dict())
    note = apply(MiDTD(policy=policy, epochs=1), student, context(tmp_path, classifier(1), train))
    assert all(loss == loss for loss in note["generations"][0]["losses"])
    assert any(not torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_generations_begin_anew(tmp_path: Path) -> None:
    train = table(tmp_path / "train.jsonl", rows(16))
    seen = []
    for count in (1, 2):
        student = classifier(2)
        note = apply(MiDTD(generations=count, epochs=2), student, context(tmp_path, classifier(1), train))
        seen.append(note["generations"])
    assert len(seen[1]) == 2
    assert seen[1][0] == seen[0][0], "the first generation is the same"
    assert seen[1][1]["losses"] != seen[1][0]["losses"]


def test_equal_seeds_give_equal_students(tmp_path: Path) -> None:
    train = table(tmp_path / "train.jsonl", rows(16))
    students = [classifier(2), classifier(2)]
    for student in students:
        apply(MiDTD(epochs=1), student, context(tmp_path, classifier(1), train))
    first, second = (student.state_dict() for student in students)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["pcnn", "bilstm"])
def test_relation_models(kind: Any, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", records(48))
    items = read_instances(train)
    sizes = {"filters": 8} if kind == "pcnn" else {"hidden": 16, "word_size": 16}
    teacher, student = (new_model(kind, items, RELATIONS, tmp_path / str(seed), seed=seed, **sizes) for seed in (1, 2))
    given = context(tmp_path, teacher, str(train))
    given.tokenizer = Vocabulary.of(items).tokenizer()
    apply(MiDTD(**QUICK, alpha=0.0), teacher, given)
    given.details.clear()
    note = apply(MiDTD(key="group+label", **{**QUICK, "epochs": 10}), student, given)
    assert max(note["generations"][0]["scores"]) > 0.9


def test_a_run_without_an_output_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = table(tmp_path / "train.jsonl", rows(16))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    given = replace(context(tmp_path, classifier(1), train), work=Path())
    apply(MiDTD(**{**QUICK, "epochs": 1}), classifier(), given)
    assert list(Path().iterdir()) == []


def test_models_that_give_no_classes_are_refused() -> None:
    regression = classifier(0, ("score",))
    for model, why in (
        (models.tiny("bert"), "no head"),
        (models.tiny("t5", 0, "lm"), "two inputs"),
        (models.tiny("bert", 0, "lm"), "fills gaps"),
        (regression, "regression"),
    ):
        with pytest.raises(RecipeError) as caught:
            resolve(model, MiDTD())
        assert why in caught.value.why


def test_label_maps_must_agree(tmp_path: Path) -> None:
    train = table(tmp_path / "train.jsonl", rows(8))
    teacher = classifier(1, ("good", "bad"))
    with pytest.raises(DataError) as caught:
        apply(MiDTD(epochs=1), classifier(2), context(tmp_path, teacher, train))
    assert caught.value.code == "CK-D066"
    assert "'good' of the teacher, 'bad' of the student" in caught.value.where


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"user": ""}, "CK-D061"),
        ({"user": None}, "CK-D004"),
        ({"label": "new"}, "CK-D051"),
        ({"text": None}, "CK-D004"),
    ],
)
def test_rows_that_are_wrong(change: dict[str, Any], code: str, tmp_path: Path) -> None:
    content = rows(8)
    train = table(tmp_path / "train.jsonl", [*content, {**content[0], **change}])
    with pytest.raises(DataError) as caught:
        apply(MiDTD(epochs=1), classifier(2), context(tmp_path, classifier(1), train, group="user"))
    assert caught.value.code == code
    assert "9" in caught.value.where


def test_a_class_never_seen(tmp_path: Path) -> None:
    train = table(tmp_path / "train.jsonl", [row for row in rows(16) if row["label"] == "good"])
    with pytest.raises(DataError) as caught:
        apply(MiDTD(epochs=1), classifier(2), context(tmp_path, classifier(1), train))
    assert caught.value.code == "CK-D067"
    assert "bad" in caught.value.where


def test_without_data_or_teacher(tmp_path: Path) -> None:
    student = classifier()
    with pytest.raises(DataError) as caught:
        apply(MiDTD(), student, Context(tokenizer=models.tokenizer()))
    assert caught.value.code == "CK-D030"
    given = context(tmp_path, None, table(tmp_path / "train.jsonl", rows(8)))
    given.teacher = None
    with pytest.raises(DataError) as caught:
        apply(MiDTD(), student, given)
    assert caught.value.code == "CK-D025"


def test_a_band_upside_down() -> None:
    with pytest.raises(ValidationError, match="is above high"):
        MiDTD(low=0.5, high=0.1)
