"""The models of ``compresskit.models``: tables of embeddings, and no transformer blocks that are ours to cut."""

from __future__ import annotations

from typing import ClassVar

from transformers import PreTrainedModel

from compresskit.core.anatomy.family import Family, register_family, tables
from compresskit.core.anatomy.parts import Anatomy


@register_family
class Relation(Family):
    """PCNN, BiLSTM and entity starts of an encoder."""

    model_types: ClassVar[tuple[str, ...]] = ("compresskit_pcnn", "compresskit_bilstm", "compresskit_entity_start")

    def read(self, model: PreTrainedModel) -> Anatomy:
        roles = {
            "words.words": "word",
            "words.to_head": "position",
            "words.to_tail": "position",
            "encoder.embeddings.word_embeddings": "word",
        }
        return Anatomy(model.config.model_type, "", (), tables(model, roles), None)

    def sync_config(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        """Nothing of these models is resized."""
