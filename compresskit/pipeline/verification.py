"""Is this folder still what was written? Hashes, layout, finite values, and a load in a fresh process."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from compresskit.calibrate.batches import random_batches
from compresskit.calibrate.outputs import outputs_of, result_of
from compresskit.checkpoint import save
from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.prove import reload_and_run
from compresskit.errors import ModelError


@dataclass(frozen=True)
class Verification:
    """The outcome of ``verify``: files checked against the manifest, and the difference between two processes."""

    folder: str
    files: int
    disk_bytes: int
    reload_max_abs_diff: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def verify(folder: str | Path) -> Verification:
    """Check a compressed checkpoint.

    Raises:
        ModelError: a file is missing or changed, the layout doesn't fit, values aren't finite, or a fresh process
            computes something else.
        SecurityError: the manifest names a path outside the folder.
    """
    path = Path(folder)
    checked = save.verify(path)
    model = load_model(path)
    batch = random_batches(model, samples=2, max_length=16, batch_size=2, seed=0)[0]
    again = result_of(SimpleNamespace(**reload_and_run(path, [dict(batch)])[0]))
    difference = float((outputs_of(model, batch) - again).abs().max())
    if difference > 0:
        raise ModelError(
            "CK-L030", f"a fresh process computes other outputs, by up to {difference:.3e}", where=str(path)
        )
    return Verification(str(path), checked.files, checked.disk_bytes, difference)
