"""What a task gives: one number that gates and reports look at, and what else was counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Score:
    """The outcome of one task.

    Args:
        metric: its name: ``spearman``, ``accuracy``.
        value: in points of 100.
        rows: examples that it was counted on.
        details: further metrics by name, in points of 100.
    """

    metric: str
    value: float
    rows: int
    details: Mapping[str, float] = field(default_factory=dict)
