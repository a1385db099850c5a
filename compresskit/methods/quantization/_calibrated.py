"""What the methods share that look at the inputs: which matrices read one input, and its moments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel

from compresskit.calibrate.moments import Moments, input_moments, site_moments
from compresskit.core import surgery
from compresskit.core.context import Context
from compresskit.core.sites import Site


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
