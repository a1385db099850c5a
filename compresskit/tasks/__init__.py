"""What a model is scored on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compresskit.errors import RecipeError
from compresskit.tasks.classification import classify
from compresskit.tasks.scores import Score
from compresskit.tasks.sts import similarity

__all__ = ["TASKS", "Score", "Settings", "measure"]

TASKS = {"sts": similarity, "classification": classify}


class Settings(Protocol):
    """What to evaluate: a task of ``TASKS``, its data file, and on how many of its first rows."""

    @property
    def task(self) -> str: ...
    @property
    def data(self) -> str | None: ...
    @property
    def samples(self) -> int | None: ...


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: Settings,
    sentence_transformer: Any = None,
) -> Score:
    """The score of ``model`` on the task of ``settings``.

    Raises:
        RecipeError: CK-R033 for an unknown task, or one without data.
        DataError: data that don't fit the task, or a model that doesn't.
    """
    task = TASKS.get(settings.task)
    if task is None:
        raise RecipeError("CK-R033", f"there is no task {settings.task!r}", fix=f"tasks: {', '.join(TASKS)}")
    if settings.data is None:
        raise RecipeError(
            "CK-R033",
            f"the task {settings.task!r} needs a data file",
            fix=f"add `evaluate: {{task: {settings.task}, data: FILE}}`",
        )
    return task(
        model, tokenizer, Path(settings.data), samples=settings.samples, sentence_transformer=sentence_transformer
    )
