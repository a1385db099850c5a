"""Whether the outputs of two models can be compared number by number."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.outputs import output_kind
from compresskit.errors import DataError


def class_names(model: PreTrainedModel) -> dict[int, str]:
    """Number -> name of each class."""
    return {int(number): str(name) for number, name in (model.config.id2label or {}).items()}


def require_same_labels(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raises DataError CK-D066 where the two models name their classes differently."""
    ours, theirs = class_names(student), class_names(teacher)
    if ours == theirs:
        return
    number = min(number for number in ours.keys() | theirs.keys() if ours.get(number) != theirs.get(number))
    raise DataError(
        "CK-D066",
        "teacher and student name their classes differently",
        where=f"class {number}: {theirs.get(number)!r:.60} of the teacher, {ours.get(number)!r:.60} of the student",
        fix="give both models the same id2label",
    )


def require_same_outputs(student: PreTrainedModel, teacher: PreTrainedModel, ours: Tensor, theirs: Tensor) -> None:
    """The logits ``ours`` (…, V) of the student and ``theirs`` (…, W) of the teacher must name the same things.

    Raises:
        DataError: CK-D073, if their numbers differ; CK-D066, classes of other names.
    """
    if output_kind(student) == "classification" and output_kind(teacher) == "classification":
        require_same_labels(student, teacher)
    if ours.shape != theirs.shape:
        raise DataError(
            "CK-D073",
            f"the student gives {ours.shape[-1]} logits, the teacher {theirs.shape[-1]}",
            where=f"{type(student).__name__} and {type(teacher).__name__}",
            fix="take a teacher of the same task and tokenizer, or distillation.uld for one with another tokenizer",
        )
