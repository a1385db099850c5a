from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from compresskit.calibrate.batches import tokenize
from compresskit.calibrate.outputs import outputs_of
from compresskit.errors import DataError
from compresskit.tasks import Options, Score, Workload
from compresskit.tasks.classification import Classification, macro_f1, read_labelled
from compresskit.tasks.run import facts_of, run_torch
from tests import models

TEXTS = ["the cat", "a good film", "we like it not", "the dog runs", "bad book"]


def written(folder: Path, labels: list[str], texts: list[str] | None = None, name: str = "rows.tsv") -> Path:
    path = folder / name
    rows = zip(texts or TEXTS, labels, strict=True)
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    return path


def scored(model: object, path: Path, **options: object) -> tuple[Workload, Score]:
    task = Classification()
    workload = task.prepare(path, models.tokenizer(), facts_of(model), Options(**options))  # type: ignore[arg-type]
    return workload, task.score(workload, run_torch(model, workload))  # type: ignore[arg-type]


def test_a_model_scores_full_marks_on_its_own_predictions(tmp_path: Path) -> None:
    model, tokenizer = models.tiny("bert", task="classifier"), models.tokenizer()
    own = outputs_of(model, tokenize(TEXTS, tokenizer, model, sort_by_length=False)[0]).argmax(-1)
    names = [model.config.id2label[int(number)] for number in own]
    _, score = scored(model, written(tmp_path, names), batch_size=2)
    assert (score.metric, score.value, score.rows) == ("accuracy", 100.0, 5)
    other = ["LABEL_0" if name != "LABEL_0" else "LABEL_1" for name in names]
    _, none = scored(model, written(tmp_path, other))
    assert none.value == 0
    assert none.scores.tolist() == [0.0] * 5


def test_macro_f1_is_over_classes_that_occur() -> None:
    gold, predicted = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 1, 2])
    by_hand = (2 / 3 + 2 / 4 + 2 / 3) / 3
    assert macro_f1(gold, predicted) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(f1_score(gold, predicted, average="macro"))


def test_labels_may_be_numbers_or_names(tmp_path: Path) -> None:
    workload, _ = scored(
        models.tiny("bert", task="classifier"), written(tmp_path, ["0", "1", "2", "LABEL_1", "LABEL_0"])
    )
    assert workload.reference["gold"].tolist() == [0, 1, 2, 1, 0]


def test_an_unknown_label_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'7'") as caught:
        scored(models.tiny("bert", task="classifier"), written(tmp_path, ["0", "1", "7", "1", "0"]))
    assert caught.value.code == "CK-D051"
    assert "line 4" in caught.value.where


@pytest.mark.parametrize(("text", "code"), [("text\tlabel\n", "CK-D003"), ("text\tclazz\na\tb\n", "CK-D004")])
def test_files_that_do_not_fit_are_refused(tmp_path: Path, text: str, code: str) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_labelled(path)
    assert caught.value.code == code


def test_plain_text_has_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("the cat\n")
    with pytest.raises(DataError) as caught:
        read_labelled(path)
    assert caught.value.code == "CK-D004"


def test_a_model_without_a_head_needs_a_file_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="head") as caught:
        scored(models.tiny("bert"), written(tmp_path, ["0"] * 5))
    assert caught.value.code == "CK-D021"
    assert "train" in caught.value.fix
    with pytest.raises(DataError) as caught:
        scored(models.tiny("bert", task="lm"), written(tmp_path, ["0"] * 5))
    assert caught.value.code == "CK-D021"


def test_a_probe_is_trained_on_embeddings_of_the_training_file_only(tmp_path: Path) -> None:
    model = models.tiny("bert")
    words = ["cat", "dog", "film", "book"]
    train = [f"the {word} {other}" for word in words for other in ("runs", "sat", "is good", "is bad")]
    labels = ["animal" if ("cat" in text or "dog" in text) else "work" for text in train]
    file = written(tmp_path, labels, train, "train.tsv")
    test = written(tmp_path, ["animal", "work", "animal"], ["a cat", "a film", "a dog"])
    workload, score = scored(model, test, train=file)
    assert score.classes == ("animal", "work")
    assert score.details["probe"] is True
    assert score.vectors is not None
    assert score.predictions is not None
    # The same by scikit-learn from embeddings that are made one text at a time.
    from compresskit.calibrate.outputs import pool

    def vectors(texts: list[str]) -> np.ndarray:
        found = []
        for text in texts:
            batch = tokenize([text], models.tokenizer(), model)[0]
            found.append(pool(outputs_of(model, batch), batch["attention_mask"].bool())[0].double().numpy())
        return np.stack([vector / np.linalg.norm(vector) for vector in found])

    probe = LogisticRegression(C=10.0, max_iter=2000).fit(vectors(train), labels)
    predicted = probe.predict(vectors(["a cat", "a film", "a dog"]))
    assert [score.classes[number] for number in score.predictions] == predicted.tolist()
    assert score.logits is not None
    np.testing.assert_allclose(
        score.logits[:, 1], probe.decision_function(vectors(["a cat", "a film", "a dog"])), atol=1e-3
    )
    assert workload.rows == 3


def test_a_probe_of_one_class_and_an_unseen_label_are_refused(tmp_path: Path) -> None:
    same = written(tmp_path, ["a"] * 5, name="same.tsv")
    with pytest.raises(DataError) as caught:
        scored(models.tiny("bert"), written(tmp_path, ["a"] * 5), train=same)
    assert caught.value.code == "CK-D054"
    two = written(tmp_path, ["a", "b"] * 2 + ["a"], name="two.tsv")
    with pytest.raises(DataError) as caught:
        scored(models.tiny("bert"), written(tmp_path, ["c"] * 5), train=two)
    assert caught.value.code == "CK-D051"


def test_logits_of_too_few_classes_are_refused(tmp_path: Path) -> None:
    model = models.tiny("bert", task="classifier")
    workload, _ = scored(model, written(tmp_path, ["2"] * 5))
    with pytest.raises(DataError) as caught:
        Classification().score(workload, [{"logits": np.zeros((5, 2))}])
    assert caught.value.code == "CK-D053"


@pytest.mark.slow
def test_a_probe_on_minilm_scores_as_the_data_sets_page_says(minilm_path: Path, shared_data: Path) -> None:
    """SST-2: 76.4 was measured with such a probe on 3,000 rows, by other code."""
    from transformers import AutoModel, AutoTokenizer

    task = Classification()
    model = AutoModel.from_pretrained(minilm_path).eval()
    folder = shared_data / "sst2"
    options = Options(train=folder / "train.tsv.gz", train_samples=3000)
    workload = task.prepare(folder / "dev.tsv", AutoTokenizer.from_pretrained(minilm_path), facts_of(model), options)
    score = task.score(workload, run_torch(model, workload))
    assert score.rows == 872
    assert score.value == pytest.approx(76.4, abs=3)
