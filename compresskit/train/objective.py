"""What a student is trained towards: a loss between its output and what the teacher gives for the same text.

Shapes: B texts, T tokens, N attended tokens, D hidden size, V words, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.calibrate.forward import PreHook, first_tensor, hooked
from compresskit.calibrate.outputs import forward, output_kind, outputs_of, pool, result_mask
from compresskit.core.context import Batch
from compresskit.numerics.divergences import bucketed, kl
from compresskit.numerics.dynamic_distillation import dynamic_loss
from compresskit.numerics.fusion import wide
from compresskit.tasks.fidelity import is_binary
from compresskit.train.agreement import require_same_outputs
from compresskit.train.losses import (
    binary_logits,
    binary_response_loss,
    cosine_loss,
    hidden_loss,
    response_loss,
    similarity_loss,
)
from compresskit.train.policies import Policy

Targets = Mapping[str, Tensor]
Divergence = Callable[[Tensor, Tensor], Tensor]
"""(log p of the teacher (N, V), log q of the student (N, V)) -> (N,)."""


class Objective(Protocol):
    """A loss, and what it needs of the teacher.

    ``targets`` gives tensors with one row a text (B, …), or, for the names in ``per_token``, one row a token of the
    result (B, T, …); they are kept in a cache, so that the teacher runs once over each text.
    """

    per_token: frozenset[str]

    def key(self) -> str:
        """Text that differs where the targets of two objectives differ."""
        ...

    def prepare(self, teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch) -> None:
        """Look at both models once, before anything else is called."""
        ...

    def targets(self, teacher: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        """What the teacher gives for ``batch``, without gradients."""
        ...

    def loss(self, student: PreTrainedModel, batch: Batch, targets: Targets) -> Tensor:
        """The loss, a scalar with gradients."""
        ...


@runtime_checkable
class Scheduled(Protocol):
    """An objective that changes as training goes on."""

    def come_to(self, share: float) -> None:
        """Told before each step: 0 at the first, towards 1 at the last."""
        ...


@runtime_checkable
class Stepping(Protocol):
    """An objective that learns something by steps of its own, when the student takes one."""

    @property
    def learned(self) -> nn.Module:
        """What it learns; not the optimizer's."""
        ...

    def advance(self) -> None:
        """Take a step by the gradients."""
        ...


@dataclass
class EmbeddingObjective:
    """Mean of 1 - cos between embeddings, ``hidden`` times the relative error of the last hidden states, and
    ``similarity`` times the mean square error of the cosines between the texts of a batch.

    Where student and teacher have different hidden sizes, neither can be compared and ``prepare`` raises; see
    ``methods.distillation.embeddings`` for what is refused before.
    """

    hidden: float = 1.0
    pooling: Any = None
    similarity: float = 0.0
    per_token: frozenset[str] = frozenset({"hidden"})

    def key(self) -> str:
        return f"embedding {getattr(self.pooling, 'pooling', 'mean')} {self.hidden > 0}"

    def prepare(self, teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch) -> None:
        """Nothing to look at."""

    def targets(self, teacher: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        output = outputs_of(teacher, batch)
        found = {"embedding": pool(output, result_mask(teacher, batch), self.pooling)}
        return found | ({"hidden": output} if self.hidden > 0 else {})

    def loss(self, student: PreTrainedModel, batch: Batch, targets: Targets) -> Tensor:
        output, mask = forward(student, batch), result_mask(student, batch)
        embedding = pool(output, mask, self.pooling)
        loss = cosine_loss(embedding, targets["embedding"])
        if self.similarity > 0:
            loss = loss + self.similarity * similarity_loss(embedding, targets["embedding"])
        if self.hidden > 0:
            loss = loss + self.hidden * hidden_loss(output[mask], targets["hidden"][mask])
        return loss


@dataclass
class ResponseObjective:
    """T² · a divergence of the softened distributions, at attended positions of a language model or on class logits.

    A language model's logits are large (V numbers a token). Where its head is a function of one hidden state (it nearly
    always is), that state is kept instead, and the teacher's head makes the same logits of it. Or, with ``top_k``, the
    k largest probabilities of each token are kept with that of all others together, and compared as k + 1 classes.

    With a ``policy`` each row has its own temperatures, and the scale is their product; a rule that goes by all targets
    (``auto``) goes by those of the batch.

    Args:
        temperature, binary, policy: softening; whether each class is a decision of its own; a rule by row.
        divergence: KL(p ‖ q) by default. With a ``policy`` there is no other.
        top_k: for language models without a ``policy``; None keeps whole distributions.
    """

    temperature: float = 2.0
    binary: bool = False
    policy: Policy | None = None
    divergence: Divergence | None = None
    top_k: int | None = None
    per_token: frozenset[str] = frozenset({"state", "logits", "top", "words"})
    _head: nn.Module | None = field(default=None, repr=False)
    _state: bool = False
    _share: float = field(default=0.0, repr=False)

    def come_to(self, share: float) -> None:
        """What a rule of temperatures goes by that changes in training."""
        self._share = share

    @property
    def learned(self) -> nn.Module:
        """Temperatures."""
        return nn.ParameterList([] if self.policy is None else self.policy.learned())

    def advance(self) -> None:
        """As the policy does."""
        if self.policy is not None:
            self.policy.advance()

    def key(self) -> str:
        return f"response {self._state}" + (f" {self.top_k} {self.temperature}" if self.top_k is not None else "")

    def prepare(self, teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch) -> None:
        """Find the teacher's head.

        Raises:
            DataError: CK-D073 or CK-D066, where the outputs of the two can't be compared.
        """
        self._head = teacher.get_output_embeddings() if output_kind(teacher) == "language" else None
        logits, state = self._run(teacher, batch)
        require_same_outputs(student, teacher, outputs_of(student, batch), logits)
        with torch.no_grad():
            self._state = self._head is not None and state is not None and torch.equal(self._head(state), logits)
        if self.top_k is not None:
            self._head, self._state = None, False

    def _run(self, teacher: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The teacher's logits, and the hidden state that went into its head."""
        seen: list[Tensor] = []

        def keep(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(first_tensor(args, kwargs, "head"))

        path = next((name for name, module in teacher.named_modules() if module is self._head), None)
        before: dict[str, PreHook] = {path: keep} if path is not None else {}
        with hooked(teacher, before):
            logits = outputs_of(teacher, batch)
        return logits, seen[-1] if seen else None

    def targets(self, teacher: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        logits, state = self._run(teacher, batch)
        if self.top_k is not None and logits.dim() == 3:
            log_p = (wide(logits) / self.temperature).log_softmax(-1)
            words = log_p.topk(min(self.top_k, log_p.shape[-1] - 1)).indices
            return {"top": bucketed(log_p, words), "words": words}
        if self._state and state is not None:
            return {"state": state}
        return {"logits": logits}

    def loss(self, student: PreTrainedModel, batch: Batch, targets: Targets) -> Tensor:
        logits, mask = forward(student, batch), result_mask(student, batch)
        ours = logits[mask] if logits.dim() == 3 else logits
        if "top" in targets:
            log_q = bucketed((wide(ours) / self.temperature).log_softmax(-1), targets["words"][mask])
            # What was rounded for the cache is made whole again.
            return self._scaled(targets["top"][mask].log_softmax(-1), log_q)
        return self.compare(ours, self.theirs(targets, mask))

    def theirs(self, targets: Targets, mask: Tensor) -> Tensor:
        """The teacher's logits, (N, V)."""
        if "state" in targets and self._head is not None:
            weight = next(self._head.parameters())
            with torch.no_grad():
                found: Tensor = self._head(targets["state"][mask].to(weight.dtype))
                return found
        logits = targets["logits"]
        return logits[mask] if logits.dim() == 3 else logits

    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """The loss between logits (N, V)."""
        if self.policy is not None:
            temperatures = self.policy.prepare(theirs)(theirs, ours, self._share)
            return dynamic_loss(ours, theirs, None, *temperatures, 1.0, squared=True)
        if self.divergence is None:
            compute = binary_response_loss if self.binary else response_loss
            return compute(ours, theirs, self.temperature)
        classes = ours.shape[-1] if self.binary else 1
        if self.binary:
            ours, theirs = binary_logits(ours), binary_logits(theirs)
        log_p, log_q = ((wide(side) / self.temperature).log_softmax(-1) for side in (theirs, ours))
        return classes * self._scaled(log_p, log_q)

    def _scaled(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return self.temperature**2 * (self.divergence or kl)(log_p, log_q).mean()


def towards_output(model: PreTrainedModel, temperature: float) -> Objective:
    """What brings ``model`` to give what its teacher gives: vectors of texts, or distributions softened by T."""
    if output_kind(model) == "embedding":
        return EmbeddingObjective()
    return ResponseObjective(temperature, is_binary(model))
