"""The ten artifacts that the project must get right: each family alone, and four combinations."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from compresskit import registry
from tests import models
from tests.contract.conformance import apply_method

Steps = list[tuple[str, dict[str, Any]]]

TRAINING = {"steps": 2, "batch": 4}

ARTIFACTS: dict[str, Steps] = {
    "pruning": [("pruning.ffn", {"keep": 0.5}), ("pruning.heads", {"keep": 0.5})],
    "quantization": [("quantization.int8", {}), ("quantization.embedding", {"bits": 4, "group": 16})],
    "distillation": [("pruning.layers", {"drop": [1]}), ("RECOVERY", TRAINING)],
    "sharing": [("sharing.layers", {"groups": [[1, 2]]})],
    "decomposition": [("decomposition.svd", {"ratio": 0.5})],
    "attention": [("attention.linear", {})],
    "prune-svd-int8": [
        ("pruning.ffn", {"keep": 0.5}),
        ("decomposition.svd", {"ratio": 0.5}),
        ("quantization.int8", {}),
    ],
    "layers-share-distil": [
        ("pruning.layers", {"drop": [0]}),
        ("sharing.layers", {"groups": [[0, 1]]}),
        ("RECOVERY", TRAINING),
    ],
    "window-int8": [("attention.window", {"window": 3}), ("quantization.int8", {})],
    "ffn-distil-int8-embedding": [
        ("pruning.ffn", {"keep": 0.5}),
        ("RECOVERY", TRAINING),
        ("quantization.int8", {}),
        ("quantization.embedding", {"bits": 8}),
    ],
}


def make(artifact: str, name: str, task: models.Task, work: Path) -> PreTrainedModel:
    """The tiny model of ``name`` after the steps of ``artifact``."""
    original = models.tiny(name, task=task)
    model = copy.deepcopy(original)
    recovery = "distillation.logits" if task == "lm" else "distillation.embeddings"
    for method, options in ARTIFACTS[artifact]:
        chosen = registry.method(recovery if method == "RECOVERY" else method).model_validate(options)
        outcome = apply_method(chosen, model, original, name, work)
        assert outcome.refused is None, f"{artifact} on {name}: {outcome.refused}"
        model = outcome.model
    return model
