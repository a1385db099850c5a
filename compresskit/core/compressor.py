"""The one interface behind which every method of the six families lives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from compresskit.core.sites import Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compresskit.core.context import Context

Need = Literal["calibration", "teacher", "labels", "training"]
Gain = Literal["file", "memory", "compute", "latency"]
Walk = Literal["model", "block"]
Streams = Literal["site", "block"]


class Compressor(BaseModel, ABC):
    """A frozen set of options, and how to apply them.

    A subclass declares its options as pydantic fields, all with defaults; unknown ones are refused. Constructing one
    does nothing. ``targets`` and ``ignore`` are globs over module paths; without ``targets`` a method takes every site
    of its kinds in the blocks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    family: ClassVar[str]
    name: ClassVar[str]
    sites: ClassVar[frozenset[str]]
    needs: ClassVar[frozenset[Need]] = frozenset()
    shrinks: ClassVar[frozenset[Gain]] = frozenset()
    walk: ClassVar[Walk] = "model"
    streams: ClassVar[Streams | None] = None
    """What has to be in memory at once for a model larger than memory to be changed as it would be whole.

    ``site``: each site is changed by its own weights alone. ``block``: a method that walks by block, and takes of the
    model no more than the entered block and what ``context.calibration`` runs of it. None: the whole model.
    ``context.details`` of a method that streams names ``bytes`` before and after."""
    paper: ClassVar[str] = ""
    package: ClassVar[str] = ""
    """An optional package without which the method refuses every site."""
    leaves: ClassVar[tuple[str, ...] | None] = None
    """What stands at a ``matrix`` or ``embedding`` site afterwards: None, the same plain module; (), no matrix that
    another method could take; ("down", "up"), matrices below it by these names."""

    targets: tuple[str, ...] = Field((), description="globs of the module paths to change; empty: all in the blocks")
    ignore: tuple[str, ...] = Field((), description="globs of the module paths to leave alone")

    @classmethod
    def full_name(cls) -> str:
        """``family.name``, as in a recipe."""
        return f"{cls.family}.{cls.name}"

    def requirements(self) -> frozenset[Need]:
        """What these options need; by default what the class says. Narrow it where an option makes data needless."""
        return type(self).needs

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Bytes that ``apply`` will save at ``sites``, or None where only the calibration data decide."""
        return None

    def plan_note(self, model: PreTrainedModel, sites: Sequence[Site]) -> str | None:
        """A sentence for the plan about what this step costs beside what it is for, or None."""
        return None

    def nothing_asked(self) -> str | None:
        """Why these options change nothing (keep 1.0, 16 bits), or None. The pipeline warns with this sentence."""
        return None

    def refuse(self, model: PreTrainedModel, sites: Sequence[Site]) -> dict[Site, str]:
        """The sites that can't be done, each with the reason in a sentence. The default asks site by site."""
        reasons = {site: self.refuse_site(model, site) for site in sites}
        return {site: reason for site, reason in reasons.items() if reason}

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        """Why this one site can't be done, or None."""
        return None

    @abstractmethod
    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> PreTrainedModel | None:
        """Change ``model`` at ``sites`` (non-empty, in the model's order) through ``core.surgery``.

        A method with ``walk = "block"`` is called once a block, and calibration then gives the inputs that the part
        already compressed produces. A distillation step may return another model.
        """
