"""How close a compressed model's outputs are to the source's, on text that nothing was fitted to.

Embedding models: cosine of the two embeddings of each text. Language models and classifiers: Kullback-Leibler
divergence (in nats) of the candidate's distribution from the reference's at each attended position, and how often the
first choices agree.

Shapes: B texts, T tokens, D hidden size, C classes (V words), N texts or positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.forward import evaluating
from compresskit.calibrate.outputs import OutputKind, output_kind, outputs_of, pool, result_mask
from compresskit.core.context import Batch
from compresskit.errors import DataError, InternalError

POSITIONS = 1024
"""Positions of a language model that are kept of each set of batches: 1,024 x 50,000 float32 take 200 MB."""

_LARGEST_LOGITS = 2**27
"""Elements of logits that are computed at once: half a GB."""


def outputs(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    *,
    sentence_transformer: Any = None,
    positions: int = POSITIONS,
) -> list[Tensor]:
    """What fidelity compares: of each batch embeddings (B, D), class logits (B, C), or logits (N, V) in float32.

    Of a language model about ``positions`` attended positions are kept, evenly spread, the same for equal batches.

    Args:
        sentence_transformer: the files of a sentence-transformers model, for its pooling; by default the mean.
    """
    return list(_outputs(model, batches, sentence_transformer, positions))


def _outputs(
    model: PreTrainedModel, batches: Sequence[Batch], sentence_transformer: Any, positions: int
) -> Iterator[Tensor]:
    kind = output_kind(model)
    total = sum(int(result_mask(model, batch).sum()) for batch in batches)
    stride = max(1, total // positions) if kind == "language" else 1
    with evaluating(model):
        for batch in batches:
            parts = [_of_batch(model, part, kind, sentence_transformer) for part in _portions(model, batch, kind)]
            yield torch.cat(parts)[::stride].cpu()


def _of_batch(model: PreTrainedModel, batch: Batch, kind: OutputKind, sentence_transformer: Any) -> Tensor:
    output, mask = outputs_of(model, batch), result_mask(model, batch)
    if kind == "embedding":
        return pool(output, mask, sentence_transformer)
    return (output[mask] if output.dim() == 3 else output).float()


def _portions(model: PreTrainedModel, batch: Batch, kind: OutputKind) -> Iterator[Batch]:
    """The batch, in several parts where its logits would take too much memory."""
    rows = next(iter(batch.values())).shape[0]
    size = 1 if kind != "language" else result_mask(model, batch)[0].numel() * model.config.vocab_size
    step = max(1, min(rows, _LARGEST_LOGITS // size))
    for start in range(0, rows, step):
        yield {name: tensor[start : start + step] for name, tensor in batch.items()}


def compare(
    reference: Sequence[Tensor],
    candidate: PreTrainedModel | Sequence[Tensor],
    batches: Sequence[Batch],
    kind: OutputKind,
    *,
    sentence_transformer: Any = None,
    positions: int = POSITIONS,
    binary: bool = False,
) -> dict[str, float]:
    """``cosine_mean`` and ``cosine_min``, or ``kl_mean`` and ``top1_agreement``, with the number compared, ``count``.

    Args:
        reference: what ``outputs`` gave for the source.
        candidate: the compressed model, or its outputs (of an ONNX file) in the same form.
        batches: those that ``reference`` was made of.
        binary: each class is a decision of its own (several labels, or a single one).

    Raises:
        InternalError: CK-D017, if the two don't have the same number of rows.
    """
    tally = Tally(kind, binary)
    found = (
        _outputs(candidate, batches, sentence_transformer, positions)
        if isinstance(candidate, PreTrainedModel)
        else iter(candidate)
    )
    for left, right in zip(reference, found, strict=True):
        tally.add(left, right)
    return tally.result()


@dataclass
class Tally:
    """Sums over the rows of pairs of outputs."""

    kind: OutputKind
    binary: bool = False
    total: float = 0.0
    least: float = 1.0
    agreed: float = 0.0
    count: int = 0

    def add(self, reference: Tensor, candidate: Tensor) -> None:
        """Count the rows of two outputs in, (N, D) or (N, C) each."""
        if reference.shape != candidate.shape:
            raise InternalError(
                "CK-D017",
                f"outputs of {tuple(reference.shape)} and {tuple(candidate.shape)} can't be compared",
                why="the two models give outputs of different sizes on the same text",
            )
        self.count += reference.shape[0]
        if self.kind == "embedding":
            cosines = torch.nn.functional.cosine_similarity(reference.double(), candidate.double(), dim=-1)
            self.total += float(cosines.sum())
            self.least = min(self.least, float(cosines.min()))
        elif self.binary:
            self.total += float(_binary_divergence(reference, candidate).sum())
            self.agreed += float(((reference > 0) == (candidate > 0)).all(-1).sum())
        else:
            self.total += float(divergence(reference, candidate).sum())
            self.agreed += float((reference.argmax(-1) == candidate.argmax(-1)).sum())

    def merge(self, other: Tally) -> None:
        """Count the rows of ``other`` in."""
        self.total, self.agreed = self.total + other.total, self.agreed + other.agreed
        self.least, self.count = min(self.least, other.least), self.count + other.count

    def result(self) -> dict[str, float]:
        """The metrics."""
        if self.count == 0:
            raise DataError("CK-D003", "there is nothing to compare the models on", fix="give text")
        if self.kind == "embedding":
            return {"cosine_mean": self.total / self.count, "cosine_min": self.least, "count": self.count}
        return {"kl_mean": self.total / self.count, "top1_agreement": self.agreed / self.count, "count": self.count}


def divergence(reference: Tensor, candidate: Tensor) -> Tensor:
    """KL(reference ‖ candidate) of each row of two sets of logits (N, C), in nats, (N,) float64."""
    p, q = reference.log_softmax(-1), candidate.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1, dtype=torch.float64)


def _binary_divergence(reference: Tensor, candidate: Tensor) -> Tensor:
    """Σ over classes of KL between two yes-or-no decisions with these logits, (N,)."""
    rows = []
    for sign in (1.0, -1.0):
        p = torch.nn.functional.logsigmoid(sign * reference.double())
        rows.append(p.exp() * (p - torch.nn.functional.logsigmoid(sign * candidate.double())))
    return (rows[0] + rows[1]).sum(-1)


@dataclass(frozen=True)
class Reference:
    """The source's outputs on held-out text of several kinds, kept while its weights are changed.

    Args:
        kind: what the model gives.
        batches: kind of text -> batches.
        values: kind of text -> the source's outputs on them.
    """

    kind: OutputKind
    batches: Mapping[str, Sequence[Batch]]
    values: Mapping[str, Sequence[Tensor]]
    sentence_transformer: Any = None
    binary: bool = field(default=False)

    @classmethod
    def of(
        cls, model: PreTrainedModel, batches: Mapping[str, Sequence[Batch]], sentence_transformer: Any = None
    ) -> Reference:
        """Run ``model`` on ``batches`` as it now is."""
        values = {
            domain: outputs(model, each, sentence_transformer=sentence_transformer) for domain, each in batches.items()
        }
        return cls(output_kind(model), dict(batches), values, sentence_transformer, is_binary(model))

    def compare(self, model: PreTrainedModel) -> dict[str, Any]:
        """The metrics of ``compare`` over all text, and under ``domains`` for each kind of text."""
        found = {
            domain: outputs(model, each, sentence_transformer=self.sentence_transformer)
            for domain, each in self.batches.items()
        }
        return self.compare_outputs(found)

    def compare_outputs(self, found: Mapping[str, Sequence[Tensor]]) -> dict[str, Any]:
        """Like ``compare``, for outputs that something else than a torch model gave."""
        whole = Tally(self.kind, self.binary)
        domains = {}
        for domain, values in self.values.items():
            part = Tally(self.kind, self.binary)
            for left, right in zip(values, found[domain], strict=True):
                part.add(left, right)
            whole.merge(part)
            domains[domain] = part.result()
        return {**whole.result(), "domains": domains}


def is_binary(model: PreTrainedModel) -> bool:
    """Whether each of a classifier's outputs is a decision of its own."""
    if output_kind(model) != "classification":
        return False
    config = model.config
    return config.num_labels == 1 or getattr(config, "problem_type", None) == "multi_label_classification"
