"""Quality on the task that the recipe names, of the source and of the saved result, on the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.source import Source
from compresskit.recipe import Recipe
from compresskit.tasks import measure


def measure_quality(recipe: Recipe, source: Source, folder: Path) -> dict[str, Any] | None:
    """``metric``, ``before`` and ``after`` in ``unit`` (``points`` of 100, or nothing), ``rows`` and so on.

    None without `evaluate`.
    """
    settings = recipe.evaluate
    if settings is None:
        return None
    tokenizer = source.load_tokenizer()
    pooling = source.sentence_transformer
    before = measure(source.load_model(), tokenizer, settings, pooling)
    after = measure(load_model(folder), tokenizer, settings, pooling)
    return {
        "metric": before.metric,
        "unit": before.unit,
        "higher_is_better": before.higher_is_better,
        "rows": before.rows,
        "before": before.value,
        "after": after.value,
        "details": dict(after.details),
        "details_before": dict(before.details),
    }
