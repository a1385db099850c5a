"""What the methods share that look at the inputs: which matrices read one input, and its moments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.moments import Moments, input_moments, site_moments
from compresskit.core import surgery
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.numerics.gptq import gptq
from compresskit.numerics.rtn import Codes, quantize, scale_type


def shared_inputs(model: PreTrainedModel, sites: Sequence[Site], context: Context) -> list[list[Site]]:
    """The sites in the order they run, those that read the very same tensor together: queries, keys and values."""
    surgery.open_gates(model, [site.path for site in sites])
    moments = input_moments(model, [site.path for site in sites], context.calibration[:1], gram=False)
    groups: dict[int, list[Site]] = {}
    for site in sites:
        groups.setdefault(id(moments[site.path]), []).append(site)
    return list(groups.values())


def inputs_in_order(
    model: PreTrainedModel, sites: Sequence[Site], context: Context
) -> Iterator[tuple[list[Site], Moments]]:
    """Groups of sites with the moments of their input, gathered when the groups before have been compressed.

    Whoever loops over it drops what it has of a group's moments before it asks for the next: one Gram matrix at a time.
    """
    done = 0
    for group in shared_inputs(model, sites, context):
        yield group, site_moments(model, group[0], context.calibration)
        done += len(group)
        context.progress(done / len(sites), group[-1].path)


def gptq_or_nearest(
    weight: Tensor,
    gram: Tensor,
    bits: int,
    columns: int | None,
    path: str,
    context: Context,
    *,
    symmetric: bool,
    **settings: Any,
) -> tuple[Codes, dict[str, Any]]:
    """GPTQ's codes of ``weight`` (O, I); rounded to nearest where the moments ``gram`` can't be inverted.

    Args:
        columns: that share a scale; None: a row.
        path: named in the warning.
        settings: others of ``numerics.gptq``.

    Returns:
        The codes, and what the ledger says of them beside.
    """
    kind = scale_type(weight, bits)
    try:
        return gptq(weight, gram, bits, columns, symmetric=symmetric, scale_dtype=kind, **settings), {}
    except torch.linalg.LinAlgError as error:
        context.warn(f"{path} is rounded to nearest: {error}")
        codes = quantize(weight, bits, columns, symmetric=symmetric, scale_dtype=kind)
        return codes, {"fallback": "nearest"}
