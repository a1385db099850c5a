"""Training on labels, and on a teacher's logits beside them: small classifiers, in plain torch.

The teacher isn't there while the student trains: its logits come as one matrix. The weights of the epoch that scores
best on development data are kept.

Shapes: N instances, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import DataError
from compresskit.numerics.dynamic_distillation import dynamic_loss
from compresskit.numerics.fusion import wide
from compresskit.train.policies import Fixed, Policy

Collate = Callable[[Sequence[Any]], dict[str, Tensor]]
_CHUNK = 16


@dataclass(frozen=True)
class FitOptions:
    """How to train.

    Args:
        epochs: passes; the best one by development score is kept.
        lr: of Adam, constant.
        batch: instances a step.
        clip: largest norm of the gradient.
        smoothing: label smoothing of the hard term.
        alpha: the paper's alpha, weight of the SOFT term; counts only with targets.
        squared: scale the soft term by T_teacher · T_student.
        seed: of the order and of dropout.
    """

    epochs: int = 10
    lr: float = 2e-3
    batch: int = 64
    clip: float = 1.0
    smoothing: float = 0.0
    alpha: float = 0.8
    squared: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """What training did: the mean loss and the development score of each epoch, and which epoch was kept (from 0).

    ``scores`` is empty where there was no development data; then the last epoch is kept.
    """

    losses: tuple[float, ...]
    scores: tuple[float, ...]
    best: int


@dataclass(frozen=True)
class Labelled:
    """Encoded instances and their labels, (N,) int64; ``length`` of an instance brings equal ones together."""

    rows: Sequence[Any]
    labels: Tensor
    collate: Collate
    length: Callable[[Any], int] = len


def fit(
    model: nn.Module,
    data: Labelled,
    options: FitOptions,
    *,
    targets: Tensor | None = None,
    policy: Policy | None = None,
    score: Callable[[nn.Module], float] | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> Fitted:
    """Train ``model`` in place; evaluation mode and no gradient afterwards.

    Args:
        targets: the teacher's fused logits, (N, C); None: labels alone.
        policy: its temperatures; T = 1 if None.
        score: of the model on development data, higher is better; None keeps the last epoch.

    Raises:
        DataError: CK-D022, a loss that is no number; CK-D065, targets that don't fit the labels.
    """
    _check_targets(data, targets)
    rule = (policy or Fixed()).prepare(targets) if targets is not None else None
    generator = torch.Generator().manual_seed(options.seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=options.lr, fused=True)
    steps = options.epochs * math.ceil(len(data.rows) / options.batch)
    done, best = 0, 0
    losses: list[float] = []
    scores: list[float] = []
    kept: dict[str, Tensor] = {}
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        for epoch in range(options.epochs):
            model.train()
            total = 0.0
            for numbers in orders(data, options.batch, generator):
                loss = _loss(model, data, numbers, options, targets, rule, done / steps)
                _step(optimizer, trained, loss, options.clip, done)
                total += float(loss.detach()) * len(numbers)
                done += 1
            losses.append(total / len(data.rows))
            model.eval()
            if score is not None:
                scores.append(score(model))
            if not scores or scores[-1] >= max(scores):
                best = epoch
                kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            if progress is not None:
                progress((epoch + 1) / options.epochs, f"epoch {epoch + 1}, loss {losses[-1]:.4f}")
    model.load_state_dict(kept)
    for parameter in trained:
        parameter.grad = None
    return Fitted(tuple(losses), tuple(scores), best)


def _check_targets(data: Labelled, targets: Tensor | None) -> None:
    if targets is None:
        return
    if targets.dim() != 2 or len(targets) != len(data.labels) or int(data.labels.max()) >= targets.shape[1]:
        raise DataError(
            "CK-D065",
            f"teacher logits of shape {tuple(targets.shape)} don't fit {len(data.labels)} labels up to"
            f" {int(data.labels.max())}",
            fix="run the teacher over the same data, with the same classes",
        )


def _loss(
    model: nn.Module,
    data: Labelled,
    numbers: Tensor,
    options: FitOptions,
    targets: Tensor | None,
    rule: Policy | None,
    share: float,
) -> Tensor:
    labels = data.labels[numbers]
    logits = model(**data.collate([data.rows[number] for number in numbers.tolist()])).logits
    if targets is None or rule is None:
        return F.cross_entropy(wide(logits), labels, label_smoothing=options.smoothing)
    theirs = targets[numbers]
    temperatures = rule(theirs, logits, share)
    return dynamic_loss(logits, theirs, labels, *temperatures, options.alpha, squared=options.squared)


def _step(
    optimizer: torch.optim.Optimizer, trained: Sequence[nn.Parameter], loss: Tensor, clip: float, done: int
) -> None:
    if not bool(torch.isfinite(loss)):
        raise DataError(
            "CK-D022", "the training loss stopped being a number", where=f"step {done}", fix="lower the learning rate"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(trained, clip)
    optimizer.step()


def orders(data: Labelled, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of numbers in random order; within some batches instances of similar length are brought together."""
    shuffled = torch.randperm(len(data.rows), generator=generator)
    batches: list[Tensor] = []
    for chunk in shuffled.split(_CHUNK * batch):
        lengths = torch.tensor([data.length(data.rows[number]) for number in chunk.tolist()])
        batches += chunk[lengths.argsort(stable=True)].split(batch)
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[index]


def logits_of(model: nn.Module, rows: Sequence[Any], collate: Collate, batch: int = 256) -> Tensor:
    """Logits of all rows in their order, (N, C) float32, in evaluation mode."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda number: len(getattr(rows[number], "ids", ())))
    found: Tensor | None = None
    with torch.no_grad():
        for start in range(0, len(order), batch):
            numbers = order[start : start + batch]
            logits = model(**collate([rows[number] for number in numbers])).logits.float()
            found = logits.new_empty(len(rows), logits.shape[1]) if found is None else found
            found[torch.tensor(numbers)] = logits
    if found is None:
        raise DataError("CK-D003", "there is no row", fix="give a file with examples")
    return found
