"""Where a model's blocks, heads, feed-forward networks and embeddings are: one file a model family."""

from __future__ import annotations

from transformers import PreTrainedModel

from compresskit.core.anatomy import (  # noqa: F401  (each registers its families)
    bert,
    decoders,
    moe,
    recurrent,
    relation,
    switch,
    t5,
    xlnet,
)
from compresskit.core.anatomy.family import Family, family_of, register_family, supported
from compresskit.core.anatomy.parts import (
    Anatomy,
    Attention,
    Block,
    EmbeddingTable,
    Experts,
    FeedForward,
    Recurrence,
    Rows,
    Stack,
)

__all__ = [
    "Anatomy",
    "Attention",
    "Block",
    "EmbeddingTable",
    "Experts",
    "Family",
    "FeedForward",
    "Recurrence",
    "Rows",
    "Stack",
    "of",
    "register_family",
    "supported",
    "sync_config",
]


def of(model: PreTrainedModel) -> Anatomy:
    """The anatomy of ``model`` as it now is.

    Raises:
        ModelError: CK-M031 for an architecture without a registered family.
    """
    return family_of(model).read(model)


def sync_config(model: PreTrainedModel) -> None:
    """Write into ``model.config`` whatever it can express of the tree: a uniform change then needs no layout."""
    family = family_of(model)
    family.sync_config(model, family.read(model))
