"""What the pruning methods share: which part of the weights to keep, and the refit of what follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.moments import Moments
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.surgery import aliases, tied_elsewhere
from compresskit.core.weights import view, view_of
from compresskit.errors import ModelError
from compresskit.numerics.refit import Refit, ridge_refit


def refuse_unplain(model: PreTrainedModel, paths: Sequence[str]) -> str | None:
    """Why the matrices at ``paths`` can't be cut: one was replaced by an earlier step, or is shared."""
    for path in paths:
        module = model.get_submodule(path)
        if view_of(path, module) is None:
            return f"an earlier step made {path} a {type(module).__name__}, which can't be cut: prune first"
        shared = [*aliases(model, path), *tied_elsewhere(model, path)]
        if shared:
            return f"it shares parameters with {shared[0]}: prune before sharing"
    return None


def kept_count(total: int, keep: float, round_to: int = 1) -> int:
    """How many of ``total`` to keep, rounded to the nearest multiple of ``round_to``, at least one multiple."""
    count = max(1, round(keep * total))
    if round_to > 1:
        count = max(round_to, round(count / round_to) * round_to)
    return min(total, count)


def refit_output(
    model: PreTrainedModel, path: str, moments: Moments, keep: Tensor, context: Context, what: str
) -> dict[str, Any]:
    """Refit the output projection at ``path`` to its kept inputs, in place; its columns are cut afterwards.

    Raises:
        ModelError: CK-T020, if the system can't be solved.
    """
    plain = view(model, path)
    if moments.gram is None:
        raise ModelError("CK-T020", "a refit needs second moments", where=path)
    try:
        found = ridge_refit(plain.weight, moments.gram, moments.mean, moments.count, keep, bias=plain.bias is not None)
    except torch.linalg.LinAlgError as error:
        raise ModelError(
            "CK-T020",
            f"the output projection can't be refitted after cutting {what}",
            where=path,
            why=str(error),
            fix="calibrate on more or other text, or set refit: false",
        ) from error
    _store(plain.weight, plain.bias, keep, found)
    return {"output_error_without_refit": found.error_before, "output_error": found.error_after}


def _store(weight: Tensor, bias: Tensor | None, keep: Tensor, found: Refit) -> None:
    with torch.no_grad():
        weight[:, keep] = found.weight.to(weight.dtype)
        if bias is not None:
            bias += found.bias_shift.to(bias.dtype)


def group_sites(sites: Sequence[Site]) -> list[list[Site]]:
    """Sites that must change alike together, others alone; in order."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.group or site.path, []).append(site)
    return list(groups.values())
