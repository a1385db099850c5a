"""A workload run by torch, for recipes: the same batches and scores as any engine's."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from compresskit.calibrate.batches import longest_input
from compresskit.calibrate.forward import accepted, evaluating
from compresskit.calibrate.outputs import outputs_of
from compresskit.tasks.workload import Facts, Workload


def facts_of(model: PreTrainedModel, sentence_transformer: Any = None) -> Facts:
    """What tasks have to know of a loaded model."""
    from dataclasses import replace

    found = Facts.of(model.config.to_dict(), sentence_transformer, type(model).__name__)
    return replace(found, longest=min(found.longest, longest_input(model)))


def run_torch(model: PreTrainedModel, workload: Workload) -> list[dict[str, np.ndarray]]:
    """The reduced outputs of each batch."""
    module, _, function = workload.reduce.partition(":")
    reduce = getattr(import_module(module), function)
    known = accepted(model)
    found = []
    with evaluating(model):
        for batch in workload.batches:
            inputs = {name: torch.from_numpy(array) for name, array in batch.items() if name in known}
            output = outputs_of(model, inputs).float().cpu().numpy()
            found.append(reduce(batch, {"logits": output, "last_hidden_state": output}))
    return found
