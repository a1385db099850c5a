from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from compresskit.errors import RecipeError
from compresskit.tasks import TASKS, measure
from tests import models


def test_a_task_is_looked_up_by_name(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("score\tsentence1\tsentence2\n5\ta cat\ta cat\n1\tgood\tthe dog\n3\tbook\ta book\n")
    settings = SimpleNamespace(task="sts", data=str(path), samples=2)
    assert measure(models.tiny("bert"), models.tokenizer(), settings).rows == 2


def test_options_of_a_task_are_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "the cat sat on a mat and the dog runs"}) + "\n")
    settings = SimpleNamespace(task="language_modelling", data=str(path), samples=None, max_length=4, stride=2)
    score = measure(models.tiny("gpt2", task="lm"), models.tokenizer(), settings)
    assert score.rows > 2
    assert score.metric == "perplexity"


@pytest.mark.parametrize(("task", "data", "words"), [("poetry", "a.tsv", "no task"), ("sts", None, "data file")])
def test_what_cannot_be_evaluated_is_refused(task: str, data: str | None, words: str) -> None:
    settings = SimpleNamespace(task=task, data=data, samples=None)
    with pytest.raises(RecipeError, match=words) as caught:
        measure(models.tiny("bert"), models.tokenizer(), settings)
    assert caught.value.code == "CK-R033"
    assert all(name in caught.value.fix for name in (TASKS if data else ["sts"]))


def test_every_task_says_what_it_measures() -> None:
    assert set(TASKS) == {"sts", "classification", "token_classification", "language_modelling", "relation_extraction"}
    assert all(task.name == name and task.metric for name, task in TASKS.items())
