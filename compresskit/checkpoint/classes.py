"""Model classes by the names that ``config.json`` holds: those of transformers, and those of ``compresskit.models``."""

from __future__ import annotations

from typing import Any


def model_class(name: str) -> Any:
    """The class called ``name``, or None. Asking for one of ours registers its config with ``AutoConfig``."""
    import transformers

    found = getattr(transformers, name, None)
    if found is None and name.endswith("ForRelationExtraction"):
        from compresskit.models import relation

        found = getattr(relation, name, None)
    elif found is None and name == "RecurrentForSequenceClassification":
        from compresskit.models import recurrent

        found = recurrent.RecurrentForSequenceClassification
    return found
