from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from compresskit.calibrate.batches import tokenize
from compresskit.calibrate.outputs import outputs_of
from compresskit.errors import DataError
from compresskit.tasks.classification import accuracy, classify, macro_f1, read_labelled
from tests import models

TEXTS = ["the cat", "a good film", "we like it not", "the dog runs", "bad book"]


def written(folder: Path, labels: list[str]) -> Path:
    path = folder / "rows.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{t}\t{n}\n" for t, n in zip(TEXTS, labels, strict=True)))
    return path


def test_metrics_equal_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    gold, predicted = torch.randint(0, 4, (2, 60), generator=generator)
    predicted[predicted == 3] = 0
    assert accuracy(gold, predicted) == pytest.approx(accuracy_score(gold, predicted))
    assert macro_f1(gold, predicted) == pytest.approx(f1_score(gold, predicted, average="macro", zero_division=0))


def test_a_model_scores_full_marks_on_its_own_predictions(tmp_path: Path) -> None:
    model, tokenizer = models.tiny("bert", task="classifier"), models.tokenizer()
    own = outputs_of(model, tokenize(TEXTS, tokenizer, model, sort_by_length=False)[0]).argmax(-1)
    names = [model.config.id2label[int(number)] for number in own]
    score = classify(model, tokenizer, written(tmp_path, names), batch_size=2)
    assert (score.metric, score.value, score.rows) == ("accuracy", 100.0, 5)
    other = ["LABEL_0" if name != "LABEL_0" else "LABEL_1" for name in names]
    assert classify(model, tokenizer, written(tmp_path, other)).value == 0


def test_labels_may_be_numbers_or_names(tmp_path: Path) -> None:
    model = models.tiny("bert", task="classifier")
    _, numbers = read_labelled(written(tmp_path, ["0", "1", "2", "LABEL_1", "LABEL_0"]), model)
    assert numbers.tolist() == [0, 1, 2, 1, 0]


def test_an_unknown_label_is_refused_with_its_line(tmp_path: Path) -> None:
    model = models.tiny("bert", task="classifier")
    with pytest.raises(DataError, match="'7'") as caught:
        read_labelled(written(tmp_path, ["0", "1", "7", "1", "0"]), model)
    assert caught.value.code == "CK-D005"
    assert "line 4" in caught.value.where


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        classify(models.tiny("bert"), models.tokenizer(), written(tmp_path, ["0"] * 5))
    assert caught.value.code == "CK-D021"
