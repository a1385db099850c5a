"""The classifier of ``compresskit.models`` with an LSTM or GRU: a table of words, and matrices of gates."""

from __future__ import annotations

from typing import ClassVar

from transformers import PreTrainedModel

from compresskit.core.anatomy.family import Family, register_family, tables
from compresskit.core.anatomy.parts import Anatomy


@register_family
class RecurrentClassifier(Family):
    """One or more layers of an LSTM or GRU over word vectors."""

    model_types: ClassVar[tuple[str, ...]] = ("compresskit_recurrent",)

    def read(self, model: PreTrainedModel) -> Anatomy:
        return Anatomy(model.config.model_type, "", (), tables(model, {"words": "word"}), None)

    def sync_config(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        """Nothing of this model is resized."""
