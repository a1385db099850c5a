"""How the layout names modules, so that it fits every class of the same model.

An address is relative to the base model where the module lies in it: ``encoder.layer.0`` is the first block in a
``BertModel`` and in a ``BertForSequenceClassification``. Everything outside the base model has an address that begins
with a slash and is relative to the whole: ``/classifier``.
"""

from __future__ import annotations

import re

from torch import nn
from transformers import PreTrainedModel

_ADDRESS = re.compile(r"/?(\w+(\.\w+)*)?", re.ASCII)


def is_address(value: object) -> bool:
    """Whether ``value`` can be an address at all."""
    return isinstance(value, str) and len(value) <= 1024 and _ADDRESS.fullmatch(value) is not None


def base_prefix(model: PreTrainedModel) -> str:
    """``'bert.'`` for a BERT with a head, ``''`` for a model that is its own base."""
    name = model.base_model_prefix
    return f"{name}." if name and isinstance(getattr(model, name, None), nn.Module) else ""


def address_of(model: PreTrainedModel, path: str) -> str:
    """The address of the module, parameter or attribute owner at ``path``."""
    prefix = base_prefix(model)
    if not prefix:
        return path
    if f"{path}.".startswith(prefix):
        return path[len(prefix) :]
    return f"/{path}"


def path_of(model: PreTrainedModel, address: str) -> str | None:
    """The path that ``address`` names in ``model``, or None where this class lacks that part (a head, a decoder)."""
    prefix = base_prefix(model)
    if address.startswith("/"):
        path = address[1:]
        # The saved class had a base model inside; this one may be the base model itself, and has no head then.
        return path if prefix and (not path or _has_part(model, path)) else None
    if not address:
        return prefix.rstrip(".")
    base = model.get_submodule(prefix.rstrip(".")) if prefix else model
    return prefix + address if _has_part(base, address) else None


def _has_part(module: nn.Module, path: str) -> bool:
    first = path.split(".", 1)[0]
    return module._modules.get(first) is not None or module._parameters.get(first) is not None
