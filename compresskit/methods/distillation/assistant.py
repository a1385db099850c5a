"""Distillation over assistants: the teacher teaches a model of fewer layers, that one the next, the last the student.

For language models and classifiers whose teacher has blocks. An assistant is the model before it with layers left out
evenly, trained on the softened distribution for as many steps as the student; it is thrown away. Of use where the
student is much smaller than its teacher; otherwise ``distillation.logits`` does the same in a fraction of the time.
Paper: Mirzadeh et al. 2020, "Improved Knowledge Distillation via Teacher Assistant", arXiv 1902.03393.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar, final

from pydantic import Field, field_validator
from transformers import PreTrainedModel

from compresskit.core import anatomy, surgery
from compresskit.core.context import Context
from compresskit.core.cutting import chosen
from compresskit.core.sites import Site
from compresskit.errors import DataError
from compresskit.methods.distillation._language import no_logits
from compresskit.methods.distillation._shared import Distillation, distil, training_options, training_texts
from compresskit.registry import register
from compresskit.tasks.fidelity import is_binary
from compresskit.train.objective import ResponseObjective
from compresskit.train.recovery import recover


def depth(model: PreTrainedModel) -> int:
    """Blocks of the model's longest stack."""
    return max((len(stack.blocks) for stack in anatomy.of(model).stacks), default=0)


def shortened(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """A copy with at most ``layers`` blocks in each stack: the first, the last, and evenly between them."""
    found = copy.deepcopy(model)
    for stack in anatomy.of(found).stacks:
        if layers < len(stack.blocks):
            surgery.keep_blocks(found, stack, chosen("spread", layers, len(stack.blocks)))
    for parameter in found.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return found.eval()


@register
@final
class Assistant(Distillation):
    """Train the model towards its teacher by way of models of a depth between both; changes no size.

    ```yaml
    - distillation.assistant: {layers: [8, 5], steps: 200, lr: 1.0e-4}
    ```
    """

    name: ClassVar[str] = "assistant"
    paper: ClassVar[str] = "Mirzadeh et al. 2020, arXiv 1902.03393"

    layers: tuple[int, ...] = Field(
        (), description="layers of each assistant, falling; default: one halfway between teacher and student"
    )
    temperature: float = Field(
        2.0, gt=0, le=100, description="softens both distributions; the loss is scaled by its square"
    )

    @field_validator("layers")
    @classmethod
    def _falling(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if list(layers) != sorted(set(layers), reverse=True) or any(count < 1 for count in layers):
            raise ValueError("each assistant has fewer layers than the one before, and at least one")
        return layers

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return no_logits(model)

    def chain(self, teacher: int, student: int) -> tuple[int, ...]:
        """Layers of the assistants between models of so many.

        Raises:
            DataError: CK-D074, one that doesn't lie between them.
        """
        if not self.layers:
            middle = (teacher + student) // 2
            return (middle,) if student < middle < teacher else ()
        wrong = [count for count in self.layers if not student < count < teacher]
        if wrong:
            raise DataError(
                "CK-D074",
                f"an assistant of {wrong[0]} layers doesn't lie between teacher and student",
                where=f"the teacher has {teacher} layers, the student {student}",
                fix=f"give numbers from {student + 1} to {teacher - 1}, falling",
            )
        return self.layers

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if context.teacher is None:
            raise DataError("CK-D025", "there is no teacher to learn from", fix="name one under `teacher:`")
        teacher = context.teacher().eval()
        sizes = self.chain(depth(teacher), depth(model))
        if not sizes:
            context.warn("no assistant fits between teacher and student: the student learns from the teacher itself")
        texts, notes = training_texts(self, context), []
        for size in sizes:
            assistant = shortened(teacher, size)
            done = recover(assistant, context, self._objective(model), texts, training_options(self), teacher=teacher)
            notes.append({"layers": size, **asdict(done)})
            teacher = assistant
        distil(self, model, sites, context, self._objective(model), teacher=teacher)
        row: dict[str, Any] = context.details[sites[0].path or "model"]
        row["assistants"] = notes

    def _objective(self, model: PreTrainedModel) -> ResponseObjective:
        return ResponseObjective(self.temperature, is_binary(model))
