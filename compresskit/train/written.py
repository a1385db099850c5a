"""Objectives on texts as they stand: the given ones, those that the teacher wrote, and those that the student writes.

Shapes: B texts, T tokens, V words.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.batches import decoder_start, longest_input
from compresskit.calibrate.forward import attention_mask
from compresskit.calibrate.outputs import forward, outputs_of
from compresskit.core.context import Batch
from compresskit.train.agreement import require_same_outputs
from compresskit.train.generation import Decoding, next_token_loss, whole_texts, write
from compresskit.train.objective import ResponseObjective, Targets

NO_TOKEN = -1


def _start(model: PreTrainedModel, batch: Batch) -> int:
    return decoder_start(model) if "decoder_input_ids" in batch else 0


@dataclass
class TokenObjective:
    """Cross-entropy of the texts' own tokens: language modelling, to which the teacher adds nothing."""

    per_token: frozenset[str] = frozenset()

    def key(self) -> str:
        return "tokens"

    def prepare(self, teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch) -> None:
        """Nothing to look at."""

    def targets(self, teacher: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        return {}

    def loss(self, student: PreTrainedModel, batch: Batch, targets: Targets) -> Tensor:
        double = "decoder_input_ids" in batch
        mask = attention_mask(batch, decoder=double)
        predicted = torch.nn.functional.pad(mask[:, 1:], (0, 1))
        return next_token_loss(
            forward(student, batch), batch["decoder_input_ids" if double else "input_ids"], predicted
        )


@dataclass
class SequenceObjective:
    """Cross-entropy of what the teacher writes behind the beginning of each text (Kim and Rush 2016, section 3.2).

    The teacher writes once for each text; its tokens are cached.
    """

    decoding: Decoding = field(default_factory=lambda: Decoding(temperature=0.0))
    seed: int = 0
    per_token: frozenset[str] = frozenset()
    _calls: int = 0
    _limit: int | None = None

    def key(self) -> str:
        return f"sequence {self.decoding} {self.seed} {self._limit}"

    def prepare(self, teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch) -> None:
        """Raises DataError CK-D073 where the student doesn't know the teacher's words."""
        require_same_outputs(student, teacher, outputs_of(student, batch), outputs_of(teacher, batch))
        self._limit = longest_input(student)
        self._calls = 0

    def targets(self, teacher: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        self._calls += 1
        with torch.random.fork_rng():
            # Equal prompts in two batches shall not be gone on with in the same way.
            torch.manual_seed(self.seed * 1_000_003 + self._calls)
            answers = write(teacher, batch, self.decoding, limit=self._limit)
        kept = torch.full((len(answers), self.decoding.new_tokens), NO_TOKEN)
        for row, answer in zip(kept, answers, strict=True):
            row[: len(answer)] = torch.tensor(answer)
        return {"answer": kept}

    def loss(self, student: PreTrainedModel, batch: Batch, targets: Targets) -> Tensor:
        answers = [[token for token in row if token != NO_TOKEN] for row in targets["answer"].tolist()]
        texts = whole_texts(batch, answers, self.decoding, _start(student, batch))
        whole = texts.batch()
        ids = whole["decoder_input_ids" if "decoder_input_ids" in whole else "input_ids"]
        return next_token_loss(forward(student, whole), ids, texts.predicted())


@dataclass
class OnPolicyObjective(ResponseObjective):
    """A divergence on texts of which a share is written by the student (Agarwal et al. 2024, algorithm 1).

    Of each batch it is drawn whether the student goes on with the beginnings of its texts; then both models read what
    it wrote, and only the written tokens count. The writing has no gradient. At ``share`` 0 nothing is drawn, and the
    teacher may leave memory; else it stays.
    """

    share: float = 0.5
    decoding: Decoding = field(default_factory=Decoding)
    _teacher: PreTrainedModel | None = field(default=None, repr=False)

    def prepare(self, teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch) -> None:
        super().prepare(teacher, student, batch)
        self._teacher = teacher if self.share > 0 else None

    def key(self) -> str:
        return f"{super().key()} {self.share == 1}"

    def targets(self, teacher: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        return {} if self.share == 1 else super().targets(teacher, batch)

    def loss(self, student: PreTrainedModel, batch: Batch, targets: Targets) -> Tensor:
        teacher = self._teacher
        if teacher is None or (self.share < 1 and float(torch.rand(())) >= self.share):
            return super().loss(student, batch, targets)
        texts = whole_texts(batch, write(student, batch, self.decoding), self.decoding, _start(student, batch))
        whole, predicted = texts.batch(), texts.predicted().to(student.device)
        return self.compare(forward(student, whole)[predicted], outputs_of(teacher, whole)[predicted])
