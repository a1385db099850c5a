"""A student whose tokenizer isn't the teacher's: sorted probabilities, where both have read the same characters.

Shapes: B texts, T tokens of the student, S tokens of the teacher, N aligned tokens, V and W words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.batches import Row, collate, longest_input
from compresskit.calibrate.outputs import forward, result_mask
from compresskit.core.context import Batch
from compresskit.errors import DataError
from compresskit.numerics.divergences import sorted_distance
from compresskit.numerics.fusion import wide
from compresskit.train.alignment import NOWHERE, Read, aligned, read
from compresskit.train.generation import next_token_loss, unpadded
from compresskit.train.objective import ResponseObjective, Targets


@dataclass
class CrossTokenizerObjective(ResponseObjective):
    """``hard`` · cross-entropy of the text's tokens + ``weight`` · mean distance of sorted probabilities.

    (Boizard et al. 2024, eq. 5.) The paper compares the n-th token with the n-th; here tokens are compared that end at
    the same character, so that both models speak of what follows the same text.

    Args:
        texts: what the student will read.
        tokenizers: the student's and the teacher's.
        max_length: tokens of the student that a text is cut to.
    """

    texts: Sequence[str] = ()
    tokenizers: tuple[Any, Any] = (None, None)
    max_length: int = 64
    hard: float = 1.0
    weight: float = 1.5
    per_token: frozenset[str] = frozenset({"state", "logits", "aligned"})
    _pairs: dict[tuple[int, ...], tuple[Read, Read]] = field(default_factory=dict, repr=False)

    def key(self) -> str:
        read_by_teacher = repr([theirs.ids for _, theirs in self._pairs.values()]).encode()
        return f"cross {super().key()} {hashlib.blake2b(read_by_teacher, digest_size=16).hexdigest()}"

    def prepare(self, teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch) -> None:
        """Tokenize all texts twice.

        Raises:
            DataError: CK-D075, tokenizers that can't be aligned, or don't meet anywhere.
        """
        ours, theirs = self.tokenizers
        left = read(self.texts, ours, min(self.max_length, longest_input(student, ours)))
        right = read(self.texts, theirs, longest_input(teacher, theirs))
        self._pairs = {pair[0].ids: pair for pair in zip(left, right, strict=True)}
        if self.share() == 0:
            raise DataError(
                "CK-D075", "the two tokenizers end no token at the same character", fix="train on texts that both read"
            )
        self._head = teacher.get_output_embeddings()
        logits, state = self._run(teacher, collate(self._rows(next(iter(self._pairs)))))
        with torch.no_grad():
            self._state = self._head is not None and state is not None and torch.equal(self._head(state), logits)

    def share(self) -> float:
        """The share of the student's tokens at which both models are compared."""
        places = [place for ours, theirs in self._pairs.values() for place in aligned(ours.ends, theirs.ends)]
        return sum(place != NOWHERE for place in places) / max(1, len(places))

    def _rows(self, *texts: tuple[int, ...]) -> list[Row]:
        """The teacher's tokens for texts that are given by the student's."""
        # A text that is nothing to the teacher is aligned nowhere: any token will do.
        ids = [list(self._pairs[text][1].ids) or [0] for text in texts]
        return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]

    def targets(self, teacher: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        texts = [tuple(ids) for ids in unpadded(batch)]
        logits, state = self._run(teacher, collate(self._rows(*texts)))
        found = state if self._state and state is not None else logits
        places = torch.full(batch["input_ids"].shape, NOWHERE)
        for row, text in zip(places, texts, strict=True):
            ours, theirs = self._pairs[text]
            row[: len(text)] = torch.tensor(aligned(ours.ends, theirs.ends))
        index = places.clamp(min=0).to(found.device)
        values = found[torch.arange(len(texts), device=found.device).unsqueeze(1), index]
        return {"state" if found is state else "logits": values, "aligned": (places != NOWHERE).unsqueeze(-1).int()}

    def loss(self, student: PreTrainedModel, batch: Batch, targets: Targets) -> Tensor:
        logits, mask = forward(student, batch), result_mask(student, batch)
        loss = logits.new_zeros(())
        if self.hard > 0:
            predicted = torch.nn.functional.pad(mask[:, 1:], (0, 1))
            loss = loss + self.hard * next_token_loss(logits, batch["input_ids"], predicted)
        shared = mask & targets["aligned"].squeeze(-1).bool()
        theirs = self.theirs(targets, shared)
        sides = [(wide(side) / self.temperature).softmax(-1) for side in (theirs, logits[shared])]
        # A batch without a shared position has an empty sum, and still a gradient of 0.
        return loss + self.weight * sorted_distance(*sides).sum() / max(1, int(shared.sum()))
