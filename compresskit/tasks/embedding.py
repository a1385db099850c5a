"""Embeddings of texts, as tasks use them."""

from __future__ import annotations

import numpy as np

from compresskit.errors import ModelError
from compresskit.numerics.reductions import POOLINGS
from compresskit.tasks.workload import Facts

_MODULE = "compresskit.numerics.reductions"


def embeddable(facts: Facts) -> bool:
    """Whether the model gives hidden states, from which a sentence vector can be made."""
    return facts.kind == "embedding"


def embedding_reduction(facts: Facts) -> str:
    """Name of the function that pools as the model's files say.

    Raises:
        ModelError: CK-M044, pooling that isn't known here.
    """
    if facts.pooling not in POOLINGS:
        raise ModelError(
            "CK-M044",
            f"sentence embeddings pooled by {facts.pooling!r} aren't known",
            where="1_Pooling/config.json",
            fix=f"known: {', '.join(POOLINGS)}",
        )
    return f"{_MODULE}:{POOLINGS[facts.pooling].__name__}"


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their length, (N, D)."""
    found: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return found
