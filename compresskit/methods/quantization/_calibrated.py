"""What the methods share that look at the inputs: which matrices read one input, and its moments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.blocks import BlockCalibration
from compresskit.calibrate.moments import Moments, input_moments, sites_moments
from compresskit.core import anatomy, surgery
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.weights import view
from compresskit.numerics.gptq import gptq
from compresskit.numerics.rtn import Codes, quantize, scale_type

_MEMORY = 2**30
"""Bytes of second moments that are gathered in one pass."""


def shared_inputs(model: PreTrainedModel, sites: Sequence[Site], context: Context) -> list[list[Site]]:
    """The sites in the order they run, those that read the very same tensor together: queries, keys and values."""
    surgery.open_parts(model, [site.path for site in sites])
    moments = input_moments(model, [site.path for site in sites], context.calibration[:1], gram=False, unrouted=True)
    groups: dict[int, list[Site]] = {}
    for site in sites:
        groups.setdefault(id(moments[site.path]), []).append(site)
    return list(groups.values())


def inputs_in_order(
    model: PreTrainedModel, sites: Sequence[Site], context: Context
) -> Iterator[tuple[list[Site], Moments]]:
    """Groups of sites with the moments of their input, gathered when the groups before have been compressed.

    Experts of one bank don't see each other's results: one pass gathers the moments of many. Those of an expert that no
    token is routed to have the count 0: ``warn_unrouted`` says so.

    Whoever loops over it drops what it has of a group's moments before it asks for the next: one Gram matrix at a time.
    """
    waves = list(_waves(model, shared_inputs(model, sites, context)))
    paths = [path for wave in waves for group in wave for site in group for path in (site.path, *site.members)]
    done = 0
    for wave in waves:
        if isinstance(context.calibration, BlockCalibration):
            context.calibration.settle(model, paths[:done], paths[done:])
        found = sites_moments(model, [group[0] for group in wave], context.calibration)
        for group in wave:
            yield group, found.pop(group[0].path)
            done += sum(1 + len(site.members) for site in group)
            context.progress(done / len(paths), group[-1].path)


def gptq_or_nearest(
    weight: Tensor,
    gram: Tensor | None,
    bits: int,
    columns: int | None,
    path: str,
    context: Context,
    *,
    symmetric: bool,
    **settings: Any,
) -> tuple[Codes, dict[str, Any]]:
    """GPTQ's codes of ``weight`` (O, I); rounded to nearest where the moments ``gram`` can't be inverted, or are None.

    Args:
        columns: that share a scale; None: a row.
        path: named in the warning.
        settings: others of ``numerics.gptq``.

    Returns:
        The codes, and what the ledger says of them beside.
    """
    kind = scale_type(weight, bits)
    if gram is not None:
        try:
            return gptq(weight, gram, bits, columns, symmetric=symmetric, scale_dtype=kind, **settings), {}
        except torch.linalg.LinAlgError as error:
            context.warn(f"{path} is rounded to nearest: {error}")
    return quantize(weight, bits, columns, symmetric=symmetric, scale_dtype=kind), {"fallback": "nearest"}


def _waves(model: PreTrainedModel, groups: Sequence[list[Site]]) -> Iterator[list[list[Site]]]:
    """The groups in their order, alike matrices of the experts of one bank together as far as memory goes."""
    waves: dict[tuple[str, str], list[list[Site]]] = {}
    for group in groups:
        path, bank = group[0].path, group[0].part
        inside = isinstance(bank, anatomy.Experts)
        key = (bank.path, re.sub(r"\d+", "", path[len(bank.path) :])) if inside else (path, "")
        waves.setdefault(key, []).append(group)
    for wave in waves.values():
        many = max(1, _MEMORY // (8 * view(model, wave[0][0].path).in_features ** 2))
        yield from (wave[start : start + many] for start in range(0, len(wave), many))


def warn_unrouted(paths: Sequence[str], instead: str, context: Context) -> None:
    """Say of the matrices at ``paths``, if any, that no token of the calibration was routed to their experts."""
    if paths:
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        context.warn(f"no token of the calibration is routed to the expert of {paths[0]}{more}: {instead}")
