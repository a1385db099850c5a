from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compresskit.errors import DataError
from compresskit.tasks import Options, Score, Workload
from compresskit.tasks.run import facts_of, run_torch
from compresskit.tasks.token_classification import TokenClassification, read_tagged, spans
from tests import models

CLASSES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
CONLL = "the DT O\ncat NN B-PER\nsat VB O\n\ngood JJ B-LOC\nfilm NN I-LOC\n"


@pytest.fixture(scope="module")
def tagger() -> object:
    from transformers import BertConfig, BertForTokenClassification

    source = models.tiny("bert").config
    config = BertConfig(**{**source.to_dict(), "id2label": dict(enumerate(CLASSES)), "label2id": None})
    config.label2id = {name: number for number, name in enumerate(CLASSES)}
    return BertForTokenClassification(config).eval()


def written(folder: Path, text: str, name: str = "rows.conll") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def perfect(workload: Workload, tags: list[list[str]]) -> list[dict[str, np.ndarray]]:
    """Logits that say ``tags`` at the first piece of each word."""
    outputs, row = [], 0
    for batch in workload.batches:
        logits = np.zeros((*batch["input_ids"].shape, len(CLASSES)), dtype=np.float32)
        for place in range(len(logits)):
            number = int(workload.order[row])
            for piece, tag in zip(workload.reference["pieces"][number], tags[number], strict=False):
                logits[place, piece, CLASSES.index(tag)] = 5
            row += 1
        outputs.append({"logits": logits})
    return outputs


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-A", "I-A", "O", "B-A"], {("A", 0, 2), ("A", 3, 4)}),
        (["B-A", "B-A"], {("A", 0, 1), ("A", 1, 2)}),
        (["I-A", "I-A", "I-B"], {("A", 0, 2), ("B", 2, 3)}),
        (["O", "I-A", "O"], {("A", 1, 2)}),
        (["B-A", "I-B", "I-B"], {("A", 0, 1), ("B", 1, 3)}),
        ([], set()),
    ],
)
def test_spans_are_counted_as_conll_counts_them(tags: list[str], expected: set[tuple[str, int, int]]) -> None:
    assert spans(tags) == expected


def test_sentences_come_from_conll_and_from_objects(tmp_path: Path) -> None:
    found = read_tagged(written(tmp_path, CONLL))
    assert found == [(["the", "cat", "sat"], ["O", "B-PER", "O"]), (["good", "film"], ["B-LOC", "I-LOC"])]
    rows = "".join(json.dumps({"tokens": words, "ner_tags": tags}) + "\n" for words, tags in found)
    assert read_tagged(written(tmp_path, rows, "rows.jsonl")) == found
    assert len(read_tagged(written(tmp_path, CONLL), 1)) == 1


@pytest.mark.parametrize(
    ("text", "name", "code"),
    [
        ("", "a.conll", "CK-D003"),
        ("cat\n", "a.conll", "CK-D052"),
        ("cat NN\n", "a.conll", "CK-D052"),
        ("cat B-\n", "a.conll", "CK-D052"),
        ('{"tokens": ["a"], "tags": ["O", "O"]}\n', "a.jsonl", "CK-D052"),
        ('{"text": "a"}\n', "a.jsonl", "CK-D004"),
        ('"a"\n', "a.jsonl", "CK-D004"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, text: str, name: str, code: str) -> None:
    with pytest.raises(DataError) as caught:
        read_tagged(written(tmp_path, text, name))
    assert caught.value.code == code


def test_no_file_and_damage_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_tagged(tmp_path / "none.conll")
    assert caught.value.code == "CK-D001"
    path = tmp_path / "rows.tsv.gz"
    path.write_bytes(b"no gzip")
    with pytest.raises(DataError) as caught:
        read_tagged(path)
    assert caught.value.code == "CK-D002"


def test_f1_counts_spans_that_are_right_in_place_and_type(tmp_path: Path, tagger: object) -> None:
    task = TokenClassification()
    path = written(tmp_path, CONLL)
    workload = task.prepare(path, models.tokenizer(), facts_of(tagger), Options(batch_size=1))  # type: ignore[arg-type]
    gold = workload.reference["tags"]
    assert task.score(workload, perfect(workload, gold)).value == 100
    # One of two spans right, one of the wrong type: precision 1/2, recall 1/2.
    half = task.score(workload, perfect(workload, [gold[0], ["B-PER", "I-PER"]]))
    assert half.value == 50
    assert half.details["precision"] == half.details["recall"] == 50
    # One right and nothing else: precision 1, recall 1/2, F1 2/3.
    lone = task.score(workload, perfect(workload, [gold[0], ["O", "O"]]))
    assert lone.value == pytest.approx(200 / 3)
    assert lone.scores.tolist() == [100, 0]
    picks = np.array([[0, 0], [1, 1], [0, 1]])
    np.testing.assert_allclose(task.values(lone.statistics, picks), [100, 0, 200 / 3])


def test_a_torch_model_is_scored(tmp_path: Path, tagger: object) -> None:
    task = TokenClassification()
    path = written(tmp_path, CONLL)
    workload = task.prepare(path, models.tokenizer(), facts_of(tagger), Options())  # type: ignore[arg-type]
    score: Score = task.score(workload, run_torch(tagger, workload))  # type: ignore[arg-type]
    assert score.rows == 2
    assert score.logits is not None
    assert score.logits.shape == (5, len(CLASSES))


def test_words_that_were_cut_off_are_missed(tmp_path: Path, tagger: object) -> None:
    task = TokenClassification()
    path = written(tmp_path, "cat B-PER\nthe O\ndog B-PER\n")
    workload = task.prepare(path, models.tokenizer(), facts_of(tagger), Options(max_length=4))  # type: ignore[arg-type]
    score = task.score(workload, perfect(workload, [["B-PER", "O"]]))
    assert score.details["words_cut_count"] == 1
    assert score.value == pytest.approx(200 / 3)


def test_types_that_the_model_does_not_know_are_refused(tmp_path: Path, tagger: object) -> None:
    path = written(tmp_path, "cat B-ANIMAL\n")
    with pytest.raises(DataError, match="ANIMAL") as caught:
        TokenClassification().prepare(path, models.tokenizer(), facts_of(tagger), Options())  # type: ignore[arg-type]
    assert caught.value.code == "CK-D051"


def test_a_model_without_such_a_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        TokenClassification().prepare(
            written(tmp_path, CONLL), models.tokenizer(), facts_of(models.tiny("bert")), Options()
        )
    assert caught.value.code == "CK-D021"


@pytest.mark.parametrize(
    ("name", "sentences", "spans_there"),
    [("conll2000/test.tsv.gz", 2012, 23852), ("wnut17/test.tsv.gz", 1287, 1079)],
)
def test_published_counts_are_found(shared_data: Path, name: str, sentences: int, spans_there: int) -> None:
    found = read_tagged(shared_data / name)
    assert len(found) == sentences
    assert sum(len(spans(tags)) for _, tags in found) == spans_there
