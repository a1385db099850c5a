"""The layout: an ordered list of operations that turns the stock model of a config into the compressed one.

It is read off the live model at every save and proved by replaying it on an empty instance. Loading replays it on the
empty model before transformers fills in the weights.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import PreTrainedModel

from compresskit.checkpoint.diff import read_operations
from compresskit.checkpoint.operations import Operation, carry_out, check, has_setting
from compresskit.checkpoint.skeleton import default_dtype, empty_model, model_dtype, picture, valid_ties
from compresskit.errors import ModelError

_ROOTS = ("", "/")
_logger = logging.getLogger(__name__)


def read_layout(model: PreTrainedModel) -> list[Operation]:
    """The operations that make ``model`` out of ``type(model)(model.config)``; [] for a stock model.

    Raises:
        ModelError: CK-L010 to CK-L012 for a part that no operation can describe; CK-L020, if the layout, replayed,
            gives another model; CK-L021, if the config makes no model at all.
    """
    layout, apart = read_operations(model)
    again = empty_model(model)
    with default_dtype(model_dtype(model)), torch.device("meta"):
        replay(again, layout)
    live, replayed = picture(model), picture(again, as_loaded=True, apart=apart)
    difference = live.first_difference(replayed)
    if difference is not None:
        path, sentence = difference
        raise ModelError(
            "CK-L020",
            "the checkpoint would not give back this model",
            where=path,
            why=sentence,
            fix="give all parameters one floating type (model.to(dtype)); otherwise this is a defect, report it",
        )
    _warn_of_cast_buffers(model, again)
    return layout


def _warn_of_cast_buffers(model: PreTrainedModel, again: PreTrainedModel) -> None:
    """``model.to(dtype)`` also casts buffers that no file holds (rotary frequencies); loading makes them anew."""
    fresh = dict(again.named_non_persistent_buffers())
    cast = [name for name, buffer in model.named_non_persistent_buffers() if buffer.dtype != fresh[name].dtype]
    if cast:
        _logger.warning(
            "compresskit: %s was cast to %s by hand; the reloaded model has it in %s and computes slightly otherwise."
            " Load with dtype= instead of casting.",
            cast[0],
            model.get_buffer(cast[0]).dtype,
            fresh[cast[0]].dtype,
        )


def replay(model: PreTrainedModel, layout: list[Operation], *, partial: bool = False) -> list[str]:
    """Carry out ``layout`` on ``model``, an empty instance of the class that was saved, or of a related one.

    Args:
        partial: the class is not the one that was saved: operations on parts that it lacks (a head, a pooler, a
            decoder) are skipped with a notice. All others must fit.

    Returns:
        The addresses of all parts that were changed.

    Raises:
        ModelError: CK-L002 malformed, CK-L003 unknown layer kind, CK-L004 doesn't fit this model.
    """
    changed: list[str] = []
    skipped: list[str] = []
    for operation in check(layout):
        address = str(operation.get("path", operation.get("target")))
        fitting = _without_foreign_attributes(model, operation) if partial else operation
        if carry_out(model, fitting):
            changed.append(address)
        else:
            skipped.append(address)
    model.all_tied_weights_keys = valid_ties(model)
    if skipped and not partial:
        raise ModelError(
            "CK-L004",
            f"{type(model).__name__} lacks what the layout changes",
            where=skipped[0] or type(model).__name__,
            why=f"{len(skipped)} operations name parts that are not there",
            fix="load it with the classes of the model it was saved from; is config.json of the same checkpoint?",
        )
    if skipped:
        _logger.warning(
            "compresskit: %s has no %s: what the checkpoint says about %d such parts is left out",
            type(model).__name__,
            ", ".join(sorted({address.lstrip("/").split(".")[0] or "head" for address in skipped})),
            len(skipped),
        )
    return changed


def _without_foreign_attributes(model: PreTrainedModel, operation: Operation) -> Operation:
    """Attributes of the whole model belong to its class: another class may not have them."""
    if operation["op"] != "attrs" or operation["path"] not in _ROOTS:
        return operation
    owner = model.base_model if operation["path"] == "" else model
    values = {name: value for name, value in operation["values"].items() if has_setting(owner, name)}
    return {**operation, "values": values}


def summary(layout: list[Operation]) -> dict[str, Any]:
    """How many operations of each sort, and how many layers of each kind; for reports."""
    counts: dict[str, int] = {}
    for operation in layout:
        name = operation["kind"] if operation["op"] == "replace" else operation["op"]
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))
