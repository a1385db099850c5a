"""What a suite is: models, recipes and tasks to go through from one baseline, and how to measure. Strict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compresskit.bench.schedule import PROFILES, Profile
from compresskit.errors import RecipeError, UsageError
from compresskit.recipe import Recipe
from compresskit.recipe.places import dotted
from compresskit.recipe.strict_yaml import parse_yaml, read_file
from compresskit.suite.peers import PEERS
from compresskit.tasks import TASKS
from compresskit.tasks.data import HUB

VERSION = 1
EngineName = Literal["torch", "onnxruntime", "openvino"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskSettings(_Section):
    """One task, on data beside the suite's file."""

    task: str = Field(min_length=1, description="a task of compresskit.tasks")
    data: str = Field(min_length=1, description="file, folder or hub: name; a path is relative to the suite's file")
    samples: int | None = Field(None, ge=1, description="use the first so many examples")
    train: str | None = Field(None, min_length=1, description="file that a probe is trained on")
    train_samples: int | None = Field(None, ge=2)
    max_length: int | None = Field(None, ge=2, le=131_072)
    stride: int | None = Field(None, ge=1, le=131_072)

    def options(self) -> dict[str, Any]:
        """Options of the task besides its data and number of examples."""
        names = ("train", "train_samples", "max_length", "stride")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class ProfileSettings(_Section):
    """A profile of one's own."""

    replicates: int = Field(2, ge=1, le=40, description="sets of fresh processes")
    together: bool = Field(False, description="start all sets at once, instead of one after the other")
    seconds: float = Field(2.0, gt=0, le=3600, description="of measuring for each arm of a cell")
    slice_seconds: float = Field(0.05, gt=0, le=10)
    least_blocks: int = Field(4, ge=3, le=1000)
    most_blocks: int = Field(30, ge=3, le=1000)
    limit: float = Field(600.0, gt=0, le=86_400, description="seconds after which a cell ends")

    def profile(self) -> Profile:
        """As the harness takes it."""
        return replace(
            PROFILES["standard"],
            name="custom",
            replicates=(self.replicates, self.replicates),
            together=self.together,
            seconds=self.seconds,
            half_width=None,
            slice_seconds=self.slice_seconds,
            least_blocks=self.least_blocks,
            most_blocks=max(self.least_blocks, self.most_blocks),
            limit=self.limit,
        )


class SuiteFile(_Section):
    """A suite as it stands in its file."""

    version: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$", description="of the summary's file")
    models: dict[str, str] = Field(min_length=1, description="name -> folder, hub id or pkg:NAME")
    recipes: dict[str, Any] = Field(
        default={}, description="name -> a recipe, the file of one, or a shipped one's name"
    )
    peers: list[str] = Field(default=[], description="names of peers; only with measure: together")
    tasks: list[TaskSettings] = Field(default=[], description="the first is scored in the processes that are timed")
    engines: list[EngineName] = Field(default=["torch", "onnxruntime"], min_length=1)
    baseline: Literal["torch", "onnxruntime"] = Field("torch", description="engine of the model that ratios are over")
    measure: Literal["each", "together"] = Field("each", description="every recipe beside the baseline, or all at once")
    profile: str | ProfileSettings = "quick"
    threads: list[int] = Field(default=[1], min_length=1)
    batches: list[int] = Field(default=[1], min_length=1)
    lengths: list[int] = Field(default=[], description="tokens of a row; default: 128 or the model's most")
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Suite:
    """A checked suite: recipes are read, paths are absolute."""

    file: SuiteFile
    recipes: Mapping[str, Recipe]
    folder: Path
    path: Path

    @property
    def tasks(self) -> list[TaskSettings]:
        """Tasks with their data found from the suite's folder."""
        return [
            task.model_copy(
                update={key: _beside(self.folder, value) for key in ("data", "train") if (value := getattr(task, key))}
            )
            for task in self.file.tasks
        ]


def load(path: str | Path) -> Suite:
    """The suite in ``path``.

    Raises:
        RecipeError: CK-R050 for a suite that isn't one, with the place; whatever is wrong with its recipes.
        UsageError: CK-U040, names in it that stand for nothing.
    """
    path = Path(path)
    document = parse_yaml(read_file(path), path.name)
    try:
        file = SuiteFile.model_validate(document.data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = tuple(first["loc"])
        where, excerpt = document.locate(place)
        name = dotted(place) or "the suite"
        raise RecipeError(
            "CK-R050", f"{name}: {first['msg']}", where=where, excerpt=excerpt, fix="see benchmarks/suites/"
        ) from None
    _check_names(file, path)
    recipes = {name: _recipe(name, content, path) for name, content in file.recipes.items()}
    return Suite(file, recipes, path.resolve().parent, path)


def _check_names(file: SuiteFile, path: Path) -> None:
    def refuse(what: str, fix: str) -> UsageError:
        return UsageError("CK-U040", what, where=path.name, fix=fix)

    for task in file.tasks:
        if task.task not in TASKS:
            raise refuse(f"there is no task {task.task!r}", f"tasks: {', '.join(TASKS)}")
    for peer in file.peers:
        if peer not in PEERS:
            raise refuse(f"there is no peer {peer!r}", f"peers: {', '.join(PEERS)}")
    if file.peers and (file.measure != "together" or len(file.models) > 1):
        raise refuse("peers are measured together with everything else", "set `measure: together`, with one model")
    if isinstance(file.profile, str) and file.profile not in PROFILES:
        raise refuse(f"there is no profile {file.profile!r}", f"profiles: {', '.join(PROFILES)}")
    if not file.recipes and not file.peers:
        raise refuse("the suite has neither recipes nor peers", "add `recipes:`")
    for name in (*file.models, *file.recipes):
        if not name or any(not (letter.isalnum() or letter in "-_.+ ") for letter in name) or name.startswith("."):
            raise refuse(f"{name!r:.60} can't be a name", "letters, digits, - _ . +")


def _recipe(name: str, content: Any, path: Path) -> Recipe:
    if isinstance(content, str):
        beside = path.parent / content
        return Recipe.load(beside if beside.is_file() else content)
    if isinstance(content, Mapping):
        return Recipe.load({"version": 1, **content})
    raise RecipeError(
        "CK-R050", f"recipes.{name} is neither a recipe nor the name of one", where=path.name, fix="steps: [...]"
    )


def _beside(folder: Path, data: str) -> str:
    return data if data.startswith(HUB) or Path(data).is_absolute() else str((folder / data).resolve())
