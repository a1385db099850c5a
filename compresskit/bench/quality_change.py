"""The change of a task's score between two records, with its interval, from the sums that both keep of each example."""

from __future__ import annotations

import numpy as np

from compresskit.bench.quality import draw
from compresskit.bench.record import Quality
from compresskit.tasks import TASKS


def difference(before: Quality, after: Quality, *, seed: int = 0) -> tuple[float, np.ndarray | None]:
    """``after`` minus ``before`` in the metric's unit, and bootstrap draws of it over the same examples.

    The draws are None where the records keep no sums, or of different examples.
    """
    value = (after.value or 0.0) - (before.value or 0.0)
    left, right = _sums(before), _sums(after)
    if left is None or right is None or left.shape != right.shape or before.task not in TASKS:
        return value, None
    picks = draw(len(left), seed=seed)
    task = TASKS[before.task]
    draws = task.values(right, picks) - task.values(left, picks)
    kept = draws[np.isfinite(draws)]
    return value, kept if len(kept) else None


def _sums(quality: Quality) -> np.ndarray | None:
    kept = quality.details.get("statistics")
    rows = kept.get("rows") if isinstance(kept, dict) else None
    if not rows:
        return None
    found = np.array(rows, dtype=np.float64)
    return found if found.ndim == 2 else None
