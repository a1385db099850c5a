"""What the pruning methods share: how many to keep, what can't be cut, statistics, and the refit of what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.blocks import BlockCalibration
from compresskit.calibrate.moments import Moments, input_moments
from compresskit.core.context import Context
from compresskit.core.cutting import kept_count, refuse_unplain, shared_with
from compresskit.core.sites import Site
from compresskit.core.weights import view
from compresskit.errors import ModelError
from compresskit.numerics.refit import RIDGE, Refit, ridge_refit

GRAM_BYTES = 2**30
"""Second moments that are held at once; beyond it, sites are measured one after the other."""


def measured(
    model: PreTrainedModel, sites: Sequence[Site], context: Context, *, gram: bool, limit: int = GRAM_BYTES
) -> Iterator[tuple[Site, Moments]]:
    """Each site with the moments of the input of its output projection, in order, from the model as it stands.

    The model must not be changed before the iteration ends: a refit to inputs of an already pruned prefix was measured
    to be no better, and costs a pass a block.
    """
    outputs = [site.part.output for site in sites]
    if not gram or sum(8 * view(model, path).in_features ** 2 for path in outputs) <= limit:
        found = input_moments(model, outputs, context.calibration, gram=gram, progress=context.progress)
        yield from ((site, found[site.part.output]) for site in sites)
        return
    walk = BlockCalibration(context.calibration)
    for number, site in enumerate(sites):
        context.progress(number / len(sites), f"calibration: {site.path}")
        if site.block is not None:
            walk.enter(model, site.block)
        yield site, input_moments(model, [site.part.output], walk)[site.part.output]


def fitted(model: PreTrainedModel, path: str, moments: Moments, keep: Tensor) -> Refit:
    """The refit of the output projection at ``path`` to its kept inputs; the model is left as it is.

    Raises:
        ModelError: CK-T020, if the system can't be solved.
    """
    plain = view(model, path)

    def solve() -> Refit:
        if moments.gram is None:
            raise ModelError("CK-T020", "a refit needs second moments", where=path)
        return ridge_refit(plain.weight, moments.gram, moments.mean, moments.count, keep, bias=plain.bias is not None)

    return solved(path, solve)


def solved(path: str, compute: Callable[[], Any]) -> Any:
    """``compute()``, with its numerical failure told as one of the layer at ``path``.

    Raises:
        ModelError: CK-T020.
    """
    try:
        return compute()
    except torch.linalg.LinAlgError as error:
        raise ModelError(
            "CK-T020",
            "the output projection can't be refitted to what is left of its inputs",
            where=path,
            why=str(error),
            fix="calibrate on more or other text, or set refit: false",
        ) from error


def covariance_of(moments: Moments, *, centred: bool) -> Tensor:
    """Second moments (I, I) of the inputs, about their mean if ``centred``."""
    if moments.gram is None:
        raise ModelError("CK-T020", "these moments hold no products")
    second = moments.gram / moments.count
    return second - torch.outer(moments.mean, moments.mean) if centred else second


def store(model: PreTrainedModel, path: str, found: Refit) -> None:
    """Write a refit into the output projection at ``path``, whose columns have been cut."""
    plain = view(model, path)
    bias = None if plain.bias is None else (plain.bias.double() + found.bias_shift).to(plain.bias.dtype)
    plain.assign(found.weight, bias)


def told(found: Refit | None) -> dict[str, float]:
    """What the ledger says of a refit: relative root mean square errors of the projection's output."""
    if found is None:
        return {}
    return {"output_error_without_refit": round(found.error_before, 6), "output_error": round(found.error_after, 6)}


__all__ = [
    "RIDGE", "covariance_of", "fitted", "kept_count", "measured", "refuse_unplain", "shared_with", "solved", "store",
    "told",
]  # fmt: skip
