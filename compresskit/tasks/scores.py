"""What a task gives: one number that gates and reports look at, and what it was counted from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Unit = Literal["points", ""]


@dataclass(frozen=True)
class Score:
    """The outcome of one task. N examples, K sums, D embedding size, C classes, M compared positions.

    Args:
        metric: its name: ``spearman``, ``accuracy``, ``span_f1``, ``perplexity``.
        value: in ``unit``.
        rows: examples that it was counted on.
        details: further metrics by name, in points of 100 unless the name says otherwise.
        task: the task's name.
        unit: ``points`` of 100, or nothing for a plain number.
        higher_is_better: whether more is better.
        scores: (N,) one number for each example: right or wrong, F1, cosine, nats a token.
        statistics: (N, K) what ``value`` is computed from; see ``Task.values``.
        columns: names of the K columns.
        predictions: (N,) or (M,) numbers of the predicted classes, where there are classes.
        gold: the right ones.
        classes: names of the classes.
        logits: (M, C), for divergences.
        vectors: (M, D) embeddings.
    """

    metric: str
    value: float
    rows: int
    details: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""
    unit: Unit = "points"
    higher_is_better: bool = True
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    statistics: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    columns: Sequence[str] = ()
    predictions: np.ndarray | None = field(default=None, repr=False)
    gold: np.ndarray | None = field(default=None, repr=False)
    classes: Sequence[str] = field(default=(), repr=False)
    logits: np.ndarray | None = field(default=None, repr=False)
    vectors: np.ndarray | None = field(default=None, repr=False)
