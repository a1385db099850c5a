"""What a checkpoint is made of: its architecture, where bytes and time are, what an earlier run did to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskit.bench.profile import Part, profile
from compresskit.calibrate.batches import random_batches
from compresskit.checkpoint.layout import read_layout
from compresskit.checkpoint.source import open_source
from compresskit.core import anatomy
from compresskit.core.sites import KINDS
from compresskit.core.targets import candidates, matching
from compresskit.pipeline.ledger import size_of


@dataclass(frozen=True)
class Inspection:
    """The outcome of ``inspect``. ``matches`` are the sites that the asked pattern names: (kind, path)."""

    model: str
    architecture: str
    parameters: int
    weight_bytes: int
    disk_bytes: int
    native: bool
    layout: list[dict[str, Any]]
    parts: list[Part]
    matches: list[tuple[str, str]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "model": self.model,
            "architecture": self.architecture,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "disk_bytes": self.disk_bytes,
            "native": self.native,
            "operations": len(self.layout),
            "parts": [part.to_dict() for part in self.parts],
            "matches": None if self.matches is None else [{"kind": kind, "path": path} for kind, path in self.matches],
        }


def inspect(
    model: str | Path, *, match: str | None = None, batch: int = 1, length: int = 64, timed: bool = True
) -> Inspection:
    """Open ``model`` and say where its bytes and milliseconds are.

    Args:
        model: a local folder, a hub id, or ``pkg:NAME``.
        match: also list the sites that this pattern would name in a recipe.
        batch, length: shape of the timed forward, of random tokens.
    """
    source = open_source(model)
    loaded = source.load_model()
    inputs = dict(random_batches(loaded, samples=batch, max_length=length, batch_size=batch, seed=0)[0])
    layout = read_layout(loaded)
    size = size_of(loaded)
    matches = None
    if match is not None:
        prefix = anatomy.of(loaded).prefix
        matches = [(site.kind, site.path) for site in candidates(loaded, KINDS) if matching(match, site, prefix)]
    return Inspection(
        str(model),
        type(loaded).__name__,
        size.parameters,
        size.bytes,
        source.disk_bytes,
        not layout,
        layout,
        profile(loaded, inputs, timed=timed),
        matches,
    )
