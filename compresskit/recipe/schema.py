"""What a recipe is, once read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from compresskit.core.compressor import Compressor
from compresskit.errors import RecipeError
from compresskit.recipe.gates import Gate

VERSION = 1


class Section(BaseModel):
    """A part of a recipe besides its steps."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Calibration(Section):
    """The texts that methods measure activations on."""

    data: str = Field("builtin", min_length=1, description="`builtin`, or a file of texts")
    samples: int = Field(256, ge=1, le=1_000_000, description="number of texts")
    max_length: int = Field(128, ge=2, le=131_072, description="tokens a text is cut to")


class TrainingData(Section):
    """Labelled data, for methods that train on labels."""

    train: str = Field(min_length=1, description="file to train on")
    dev: str | None = Field(None, description="file to choose and stop by")
    text: str = Field("text", description="column of the text")
    label: str = Field("label", description="column of the label")
    group: str | None = Field(
        None, description="column whose equal values belong together, such as both texts of a pair"
    )


class Evaluation(Section):
    """What the model is scored on, before and after."""

    task: str = Field(min_length=1, description="a task of compresskit.tasks")
    data: str | None = Field(None, description="file of examples")
    samples: int | None = Field(None, ge=1, description="use the first so many examples")
    train: str | None = Field(None, min_length=1, description="classification without a head: file to train a probe on")
    train_samples: int | None = Field(None, ge=2, description="use the first so many of its examples")
    max_length: int | None = Field(None, ge=2, le=131_072, description="tokens of a text, or of a window")
    stride: int | None = Field(None, ge=1, le=131_072, description="language modelling: from one window to the next")


class OnnxExport(Section):
    """How the result is exported."""

    profile: Literal["auto", "fast", "static", "portable"] = Field(
        "fast", description="what the file is made for; auto measures each on this machine and keeps the best"
    )
    min_cosine: float | None = Field(
        None, gt=-1, le=1, description="auto: the least a file may keep of the weights with float products"
    )

    @model_validator(mode="after")
    def _only_of_auto(self) -> Self:
        if self.min_cosine is not None and self.profile != "auto":
            raise ValueError("`min_cosine` chooses among profiles: it belongs to `profile: auto`")
        return self


class Export(Section):
    """What is made of the result besides the checkpoint."""

    onnx: OnnxExport | None = Field(None, description="write onnx/ into the checkpoint")


SECTIONS: dict[str, type[Section]] = {
    "calibration": Calibration,
    "data": TrainingData,
    "evaluate": Evaluation,
    "export": Export,
}
KEYS = ("version", "model", "calibration", "data", "teacher", "steps", "evaluate", "gates", "export")


@dataclass(frozen=True)
class Step:
    """One method with its options, and the training that repairs its damage.

    ``place`` is where the step stands in the recipe's text, for messages.
    """

    method: Compressor
    recover: Compressor | None = None
    place: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, Any]:
        """``{family.method: {options, recover}}`` with every option written out."""
        options = resolved_options(self.method)
        if self.recover is not None:
            options["recover"] = {self.recover.full_name(): resolved_options(self.recover)}
        return {self.method.full_name(): options}


def resolved_options(method: Compressor) -> dict[str, Any]:
    """All options as JSON-able data, defaults too, so that a later change of a default doesn't change the recipe.

    What is None or empty by default and was left so says nothing, and is left out.
    """
    options = method.model_dump(mode="json")
    for name, info in type(method).model_fields.items():
        if options[name] in (None, []) and info.get_default(call_default_factory=True) in (None, (), []):
            del options[name]
    return options


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. Equal recipes give equal ``to_yaml()``.

    Made by :meth:`load`, or in Python: ``Recipe(steps=(FFN(keep=0.75), Int8()))``.
    """

    steps: tuple[Step, ...]
    model: str | None = None
    calibration: Calibration = field(default_factory=Calibration)
    data: TrainingData | None = None
    teacher: str | None = None
    evaluate: Evaluation | None = None
    gates: tuple[Gate, ...] = ()
    export: Export | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        steps = tuple(Step(step) if isinstance(step, Compressor) else step for step in self.steps)
        if not steps:
            raise RecipeError("CK-R007", "the recipe has no steps", fix="add at least one method to `steps:`")
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "gates", tuple(self.gates))

    @staticmethod
    def load(source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
        """A recipe from a file (``.yaml .yml .json``), the name of a recipe that comes along, a mapping, or itself.

        Raises:
            RecipeErrors: every mistake, each with its place.
            RecipeError: a file that can't be read, isn't YAML or JSON, or is over a limit.
        """
        from compresskit.recipe.reader import load

        return load(source)

    @staticmethod
    def from_text(text: str, name: str = "recipe") -> Recipe:
        """A recipe from YAML text; ``name`` stands for it in messages."""
        from compresskit.recipe.reader import from_text

        return from_text(text, name)

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe as JSON-able data: all options written out; no output path, no date."""
        content: dict[str, Any] = {"version": self.version}
        if self.model is not None:
            content["model"] = self.model
        content["calibration"] = self.calibration.model_dump(mode="json")
        if self.data is not None:
            content["data"] = self.data.model_dump(mode="json", exclude_none=True)
        if self.teacher is not None:
            content["teacher"] = self.teacher
        content["steps"] = [step.to_dict() for step in self.steps]
        if self.evaluate is not None:
            content["evaluate"] = self.evaluate.model_dump(mode="json", exclude_none=True)
        if self.gates:
            content["gates"] = {gate.metric: gate.text for gate in self.gates}
        if self.export is not None:
            content["export"] = self.export.model_dump(mode="json", exclude_none=True)
        return content

    def to_yaml(self) -> str:
        """The resolved recipe as YAML that :meth:`from_text` reads back to an equal recipe."""
        from compresskit.recipe.writer import to_yaml

        return to_yaml(self.to_dict())


def refuse(errors: list[RecipeError]) -> NoReturn:
    """Raise the one error, or all of them together."""
    from compresskit.errors import RecipeErrors

    raise errors[0] if len(errors) == 1 else RecipeErrors(errors)
