"""What the quantization methods share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.core import anatomy
from compresskit.core.sites import Site
from compresskit.core.weights import PartView, WeightView, parts, view

_ROWS = 512
"""Rows of a table that are float at once for the ledger."""


def users_of_weight(model: nn.Module, plain: WeightView) -> list[str]:
    """Paths of the other modules that hold the very parameter which stores this matrix; the bias doesn't matter."""
    wanted = plain.parameter
    owners = [
        name.rpartition(".")[0]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter is wanted
    ]
    if isinstance(plain, PartView):
        holding = {owner for owner in owners if any(True for _ in parts(owner, model.get_submodule(owner)))}
        owners = [f"{owner}.{plain.name}".lstrip(".") if owner in holding else owner for owner in owners]
    return [path for path in owners if path != plain.path]


def refuse_integer_site(model: PreTrainedModel, site: Site) -> str | None:
    """Why the matrix of ``site`` can't become codes of its own, or None."""
    plain = view(model, site.path)
    own = {site.path, *site.members}
    foreign = [path for path in users_of_weight(model, plain) if path not in own]
    if foreign:
        return (
            f"its weight is tied to {', '.join(foreign)} and would be stored twice: quantize it with"
            " quantization.embedding {bits: 8}, whose codes the head then shares"
        )
    return "it has no weights" if plain.weight.numel() == 0 else None


def refuse_parts(site: Site) -> str | None:
    """Why the matrix of ``site`` is nothing for a method that scales or bounds the inputs, or None."""
    if isinstance(site.part, anatomy.Experts):
        return "it is an expert's, which sees few of the calibration's tokens, or none: use quantization.int8"
    if isinstance(site.part, anatomy.Recurrence):
        return "it makes the gates of an LSTM or GRU, whose inputs stay as they are: use quantization.int8"
    return None


def weight_bytes(plain: WeightView) -> int:
    """Bytes of the matrix as it is stored now."""
    return plain.weight.numel() * plain.weight.element_size()


def quantization_detail(before: Tensor, after: Tensor | Callable[[int, int], Tensor], stored: int) -> dict[str, Any]:
    """The row of the ledger for one matrix: bytes, bits for each weight on disk, ‖ΔW‖ / ‖W‖.

    Args:
        before: the matrix (O, I).
        after: what its codes stand for, or a function that gives the rows from one to another.
        stored: bytes of codes, scales and zero points.
    """
    norm = lost = 0.0
    for start in range(0, len(before), _ROWS):
        stop = start + _ROWS
        rows = before[start:stop].float()
        found = after[start:stop] if isinstance(after, Tensor) else after(start, stop)
        norm += float(torch.linalg.vector_norm(rows)) ** 2
        lost += float(torch.linalg.vector_norm(found.float() - rows)) ** 2
    return {
        "bytes": [before.numel() * before.element_size(), stored],
        "bits_per_weight": round(8 * stored / before.numel(), 4),
        "relative_error": (lost / norm) ** 0.5 if norm > 0 else 0.0,
    }
