"""How an architecture is made known: one ``Family`` a model family, registered by a decorator."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from compresskit.core.anatomy.parts import Anatomy, Attention, EmbeddingTable, Rows
from compresskit.core.weights import view_of
from compresskit.errors import ModelError

_FAMILIES: dict[str, Family] = {}


class Family(ABC):
    """Reads anatomies of the models of one family, and writes into their config what the config can express."""

    model_types: ClassVar[tuple[str, ...]]

    @abstractmethod
    def read(self, model: PreTrainedModel) -> Anatomy:
        """The anatomy of ``model``, from its live tree."""

    @abstractmethod
    def sync_config(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        """Set the fields of ``model.config`` that describe the tree as it now is: layer counts, uniform widths."""


def register_family(cls: type[Family]) -> type[Family]:
    """Class decorator: serve the model types that ``cls`` names."""
    family = cls()
    for model_type in cls.model_types:
        _FAMILIES[model_type] = family
    return cls


def family_of(model: PreTrainedModel) -> Family:
    """The family that serves ``model``.

    Raises:
        ModelError: CK-M031, with the closest supported model types and how to register one.
    """
    model_type = model.config.model_type
    if model_type not in _FAMILIES:
        close = difflib.get_close_matches(model_type, _FAMILIES, n=2, cutoff=0.5)
        raise ModelError(
            "CK-M031",
            f"the architecture {model_type!r} is not supported",
            where=type(model).__name__,
            why=f"supported: {', '.join(sorted(_FAMILIES))}" + (f"; closest: {', '.join(close)}" if close else ""),
            fix="register a Family for it: see CONTRIBUTING.md, 'Add an architecture'",
        )
    return _FAMILIES[model_type]


def supported() -> list[str]:
    """All supported model types."""
    return sorted(_FAMILIES)


def base_prefix(model: PreTrainedModel) -> str:
    """``'bert.'`` for a BERT with a head, ``''`` for the base model itself."""
    name = model.base_model_prefix
    return f"{name}." if name and isinstance(getattr(model, name, None), nn.Module) else ""


def rows_of(model: nn.Module, path: str) -> int:
    """Output features of the module at ``path``, also when a compressed layer stands there."""
    module = model.get_submodule(path)
    plain = view_of(path, module)
    return plain.out_features if plain is not None else int(module.out_features)  # type: ignore[arg-type]


def separate_attention(
    model: nn.Module, path: str, names: tuple[str, str, str], output: str, head_dim: int, **more: Any
) -> Attention:
    """An attention whose queries, keys and values are modules of their own, ``names`` below ``path``."""
    query, key, value = (f"{path}.{name}" for name in names)
    wide, narrow = rows_of(model, query), rows_of(model, key)
    return Attention(
        path=path,
        query=Rows(query, 0, wide),
        key=Rows(key, 0, narrow),
        value=Rows(value, 0, narrow),
        output=output,
        heads=wide // head_dim,
        kv_heads=narrow // head_dim,
        head_dim=head_dim,
        **more,
    )


def output_embedding_path(model: PreTrainedModel) -> str | None:
    """Path of the module that maps hidden states to the vocabulary, or None."""
    head = model.get_output_embeddings()
    if head is None:
        return None
    return next((name for name, module in model.named_modules() if module is head), None)


def tables(model: PreTrainedModel, roles: dict[str, str]) -> tuple[EmbeddingTable, ...]:
    """The tables at the paths of ``roles`` (path -> role) that exist, with the paths tied to each.

    A table that is tied to an earlier one is listed there and not again.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    found: list[EmbeddingTable] = []
    taken: set[str] = set()
    for path, role in roles.items():
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue
        if path in taken or not any(True for _ in module.parameters()):
            continue
        first = next(module.parameters())
        tied = tuple(owner for owner in owners.get(id(first), []) if owner != path)
        taken.update(tied)
        found.append(EmbeddingTable(path, role, tied))
    return tuple(found)


def uniform(values: list[int]) -> int | None:
    """The common value of a non-empty list, or None."""
    return values[0] if values and len(set(values)) == 1 else None
