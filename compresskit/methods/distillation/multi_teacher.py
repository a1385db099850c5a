"""Distillation from several teachers: the student follows the weighted mean of what they say.

For language models and classifiers; all teachers share the student's tokenizer and its words or classes. The recipe's
``teacher:`` is the first, ``teachers`` are further ones, which stay in memory during training. Not for base encoders,
which give no distribution. Papers: Hinton et al. 2015, section 5, arXiv 1503.02531 (probabilities); You et al. 2017,
"Learning from Multiple Teacher Networks".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, final

from pydantic import Field, field_validator
from transformers import PreTrainedModel

from compresskit.checkpoint.source import open_source
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.errors import DataError
from compresskit.methods.distillation._language import no_logits
from compresskit.methods.distillation._shared import Distillation, distil
from compresskit.registry import register
from compresskit.tasks.fidelity import is_binary
from compresskit.train.ensemble import EnsembleObjective


@register
@final
class MultiTeacher(Distillation):
    """Train the model towards the mean of several teachers; repairs what earlier steps damaged, changes no size.

    ```yaml
    teacher: runs/first
    steps:
      - distillation.multi_teacher: {teachers: [runs/second, runs/third], weights: [2, 1, 1], steps: 200}
    ```
    """

    name: ClassVar[str] = "multi_teacher"
    paper: ClassVar[str] = "Hinton et al. 2015, arXiv 1503.02531; You et al. 2017, doi 10.1145/3097983.3098135"

    teachers: tuple[str, ...] = Field((), description="further teachers: folders, or names as under `teacher:`")
    weights: tuple[float, ...] = Field((), description="of each teacher, the recipe's first; default: all equal")
    mean: Literal["probabilities", "logits"] = Field("probabilities", description="what is averaged")
    temperature: float = Field(
        2.0, gt=0, le=100, description="softens all distributions; the loss is scaled by its square"
    )

    @field_validator("weights")
    @classmethod
    def _above_zero(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if any(weight <= 0 for weight in weights):
            raise ValueError("a weight must be above 0; leave a teacher out instead")
        return weights

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        return no_logits(model)

    def shares(self) -> tuple[float, ...]:
        """The weight of each teacher, summing to 1.

        Raises:
            DataError: CK-D076, another number of weights than of teachers.
        """
        count = 1 + len(self.teachers)
        given = self.weights or (1.0,) * count
        if len(given) != count:
            raise DataError(
                "CK-D076",
                f"{len(given)} weights for {count} teachers",
                fix="give one for the recipe's teacher, then one for each of `teachers`",
            )
        return tuple(weight / sum(given) for weight in given)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        shares = self.shares()
        sources = [open_source(name) for name in self.teachers]
        objective = EnsembleObjective(
            self.temperature,
            is_binary(model),
            others=[source.load_model(dtype="float32", device=context.device) for source in sources],
            digests=tuple(source.fingerprint for source in sources),
            weights=shares,
            mean=self.mean,
        )
        distil(self, model, sites, context, objective)
