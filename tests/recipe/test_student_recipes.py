"""The recipe of a student of another class: a BiLSTM with the words of a BERT classifier, taught by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import compresskit
from compresskit.checkpoint.load import load_model
from compresskit.models.recurrent import RecurrentForSequenceClassification
from compresskit.recipe import Recipe
from tests import models
from tests.methods.distillation.training import TEXTS

RECIPE = Path(__file__).parents[2] / "recipes" / "students" / "bilstm.yaml"


def test_a_student_takes_words_and_classes_of_its_teacher() -> None:
    teacher = models.tiny("distilbert", task="classifier")
    student = RecurrentForSequenceClassification.of_teacher(teacher, seed=1, hidden=8, layers=1)
    assert torch.equal(student.words.weight, teacher.get_input_embeddings().weight)
    assert student.config.id2label == teacher.config.id2label
    again = RecurrentForSequenceClassification.of_teacher(teacher, seed=1, hidden=8, layers=1)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))
    other = RecurrentForSequenceClassification.of_teacher(teacher, seed=2, hidden=8, layers=1)
    assert not torch.equal(other.classifier.weight, student.classifier.weight)


def test_a_bilstm_learns_from_a_bert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = models.tiny("bert", task="classifier")
    models.write_checkpoint(teacher, tmp_path / "teacher")
    student = RecurrentForSequenceClassification.of_teacher(teacher, hidden=16, layers=1, dropout=0.0)
    models.write_checkpoint(student, tmp_path / "student")
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load(RECIPE)
    assert Recipe.from_text(recipe.to_yaml()) == recipe
    content = recipe.to_dict()
    content["steps"][0]["distillation.logits"].update({"epochs": 4, "batch": 8, "lr": 1e-2})
    result = compresskit.apply(None, content, "out")
    (note,) = result.steps[0]["details"].values()
    assert note["last_loss"] < note["first_loss"] / 2
    found = load_model(tmp_path / "out")
    assert type(found) is RecurrentForSequenceClassification
    tokens = models.tokenizer()(TEXTS[:4], padding=True, return_tensors="pt")
    with torch.no_grad():
        logs = [model(**tokens).logits.log_softmax(-1) for model in (teacher, student, found)]
    before, after = (
        torch.nn.functional.kl_div(each, logs[0], reduction="batchmean", log_target=True) for each in logs[1:]
    )
    assert after < before / 2
