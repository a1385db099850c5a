"""A site: one place of a model that a method can change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

KINDS = frozenset({"matrix", "embedding", "attention", "ffn", "block", "experts", "rnn", "model"})


@dataclass(frozen=True)
class Site:
    """One place that a method can change.

    Args:
        kind: one of ``KINDS``.
        path: dotted path of the module that stands for the site.
        members: paths of all modules that belong to it; patterns match these too.
        group: name shared by sites that must change alike (the heads of a T5 stack), or None.
        block: path of the block that holds it, or None outside the blocks.
        part: its anatomy: ``Attention``, ``FeedForward``, ``Block``, ``EmbeddingTable``, ``Recurrence`` (the LSTM or
            GRU that holds the matrix) or ``Experts`` (of which one has the matrix) of ``core.anatomy``, or None.
    """

    kind: str
    path: str
    members: tuple[str, ...] = ()
    group: str | None = None
    block: str | None = None
    part: Any = field(default=None, compare=False)

    @property
    def home(self) -> str:
        """Path of a module that holds the whole site: its block, its LSTM or GRU, or itself."""
        return self.block or getattr(self.part, "path", "") or self.path
