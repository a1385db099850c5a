"""What a model is scored on: each task prepares batches of tokens, and scores what some engine made of them."""

from __future__ import annotations

import difflib
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compresskit.errors import RecipeError
from compresskit.tasks.classification import Classification
from compresskit.tasks.language_modelling import LanguageModelling
from compresskit.tasks.relation_extraction.task import RelationExtraction
from compresskit.tasks.run import facts_of, run_torch
from compresskit.tasks.scores import Score
from compresskit.tasks.sts import Similarity
from compresskit.tasks.token_classification import TokenClassification
from compresskit.tasks.workload import Facts, Options, Task, Workload

__all__ = ["TASKS", "Facts", "Options", "Score", "Settings", "Task", "Workload", "measure", "named", "options_of"]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (Similarity(), Classification(), TokenClassification(), LanguageModelling(), RelationExtraction())
}


class Settings(Protocol):
    """What to evaluate: a task of ``TASKS``, its data, and on how many of its first rows."""

    @property
    def task(self) -> str: ...
    @property
    def data(self) -> str | None: ...
    @property
    def samples(self) -> int | None: ...


def named(name: str) -> Task:
    """The task called ``name``.

    Raises:
        RecipeError: CK-R033.
    """
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"tasks: {', '.join(TASKS)}"
        raise RecipeError("CK-R033", f"there is no task {name!r:.60}", fix=fix)
    return TASKS[name]


def options_of(settings: Any) -> Options:
    """The options that ``settings`` names; those that it doesn't know have their defaults."""
    names = ("samples", "train", "train_samples", "max_length", "stride")
    chosen: dict[str, Any] = {name: getattr(settings, name, None) for name in names}
    return Options(**chosen)


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
    task = named(settings.task)
    if settings.data is None:
        raise RecipeError(
            "CK-R033",
            f"the task {settings.task!r} needs a data file",
            fix=f"add `evaluate: {{task: {settings.task}, data: FILE}}`",
        )
    facts = facts_of(model, sentence_transformer)
    workload = task.prepare(settings.data, tokenizer, facts, options_of(settings))
    return task.score(workload, run_torch(model, workload))
