from __future__ import annotations

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


@pytest.mark.parametrize(("task", "data", "words"), [("poetry", "a.tsv", "no task"), ("sts", None, "data file")])
def test_what_cannot_be_evaluated_is_refused(task: str, data: str | None, words: str) -> None:
    settings = SimpleNamespace(task=task, data=data, samples=None)
    with pytest.raises(RecipeError, match=words) as caught:
        measure(models.tiny("bert"), models.tokenizer(), settings)
    assert caught.value.code == "CK-R033"
    assert all(name in caught.value.fix for name in (TASKS if data else ["sts"]))
