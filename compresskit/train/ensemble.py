"""Several teachers whose mean the student follows.

Shapes: B texts, T tokens, N rows, V words or classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.outputs import forward, result_mask
from compresskit.core.context import Batch
from compresskit.numerics.divergences import mixture
from compresskit.numerics.fusion import wide
from compresskit.train.losses import binary_logits, response_loss
from compresskit.train.objective import ResponseObjective, Targets


@dataclass
class EnsembleObjective(ResponseObjective):
    """T² · KL(p̄ ‖ q): p̄ is the weighted mean of the teachers' softened probabilities, or that of their mean logits.

    Args:
        others: teachers besides the first; they stay in memory.
        digests: of each of ``others``, for the cache to know them by.
        weights: of all teachers, the first one's first; above 0, summing to 1.
        mean: what is averaged.
    """

    others: Sequence[PreTrainedModel] = field(default=(), repr=False)
    digests: tuple[str, ...] = ()
    weights: tuple[float, ...] = (1.0,)
    mean: Literal["probabilities", "logits"] = "probabilities"
    _parts: list[ResponseObjective] = field(default_factory=list, repr=False)

    def key(self) -> str:
        return f"ensemble {[part.key() for part in self._parts]} {self.digests}"

    def prepare(self, teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch) -> None:
        self._parts = [ResponseObjective() for _ in range(1 + len(self.others))]
        for part, model in zip(self._parts, (teacher, *self.others), strict=True):
            part.prepare(model, student, batch)
        self.per_token = frozenset(f"{name}-{n}" for name in ("state", "logits") for n in range(len(self._parts)))

    def targets(self, teacher: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        pairs = zip(self._parts, (teacher, *self.others), strict=True)
        return {
            f"{name}-{number}": value
            for number, (part, model) in enumerate(pairs)
            for name, value in part.targets(model, batch).items()
        }

    def loss(self, student: PreTrainedModel, batch: Batch, targets: Targets) -> Tensor:
        logits, mask = forward(student, batch), result_mask(student, batch)
        ours = logits[mask] if logits.dim() == 3 else logits
        theirs = []
        for number, part in enumerate(self._parts):
            own = {name.partition("-")[0]: value for name, value in targets.items() if name.endswith(f"-{number}")}
            theirs.append(wide(part.theirs(own, mask)))
        return self.compare(ours, self.combined(theirs)) if not self.binary else self._by_class(ours, theirs)

    def combined(self, logits: Sequence[Tensor]) -> Tensor:
        """Logits (N, V) whose softened distribution is p̄, of the teachers' (N, V) each."""
        if self.mean == "logits":
            weighted = [weight * part for weight, part in zip(self.weights, logits, strict=True)]
            return sum(weighted[1:], weighted[0])
        log_ps = [(part / self.temperature).log_softmax(-1) for part in logits]
        return self.temperature * mixture(log_ps, self.weights)

    def _by_class(self, ours: Tensor, theirs: Sequence[Tensor]) -> Tensor:
        found = self.combined([binary_logits(part) for part in theirs])
        return response_loss(binary_logits(ours), found, self.temperature) * ours.shape[-1]
