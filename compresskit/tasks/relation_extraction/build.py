"""A new model for relation extraction, with random weights or a given encoder, in a folder with its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer, PreTrainedModel

from compresskit.models.relation import (
    BiLSTMForRelationExtraction,
    EntityStartForRelationExtraction,
    PCNNForRelationExtraction,
)
from compresskit.models.settings import BiLSTMConfig, EntityStartConfig, PCNNConfig
from compresskit.tasks.relation_extraction.encoding import Vocabulary, add_markers, word_vectors
from compresskit.tasks.relation_extraction.instances import Instance

Kind = Literal["pcnn", "bilstm", "bert"]


def new_model(
    kind: Kind,
    instances: Sequence[Instance],
    relations: dict[str, int],
    folder: str | Path,
    *,
    encoder: str | Path | None = None,
    vectors: str | Path | None = None,
    seed: int = 0,
    **settings: Any,
) -> PreTrainedModel:
    """Make a model and write it with its tokenizer to ``folder``.

    Args:
        instances: the training sentences, whose words the vocabulary takes.
        relations: names of the classes -> numbers.
        encoder: for ``bert``, a local model and tokenizer of any architecture.
        vectors: word vectors as text or .npz for the other two; they say the size of a word.
        settings: of the config, such as ``filters`` or ``trainable_layers``.
    """
    names = {"id2label": {number: name for name, number in relations.items()}, "label2id": dict(relations)}
    torch.manual_seed(seed)
    if kind == "bert":
        model, tokenizer = _on_encoder(encoder, {**names, **settings})
    else:
        model, tokenizer = _on_words(kind, instances, vectors, {**names, **settings})
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def _on_encoder(encoder: str | Path | None, settings: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    from transformers import AutoModel

    if encoder is None:
        raise ValueError("an entity-start model needs an encoder")
    tokenizer = AutoTokenizer.from_pretrained(str(encoder), local_files_only=True)
    inner = AutoModel.from_pretrained(str(encoder), local_files_only=True)
    add_markers(tokenizer, inner)
    model = EntityStartForRelationExtraction(EntityStartConfig(encoder=inner.config.to_dict(), **settings))
    missing, unexpected = model.encoder.load_state_dict(inner.state_dict(), strict=False)
    if missing or unexpected:
        raise ValueError(f"the encoder's weights don't fit: {[*missing, *unexpected][:5]}")
    return model, tokenizer


def _on_words(
    kind: Kind, instances: Sequence[Instance], vectors: str | Path | None, settings: dict[str, Any]
) -> tuple[PreTrainedModel, Any]:
    vocabulary = Vocabulary.of(instances)
    found = word_vectors(vectors, vocabulary) if vectors is not None else {}
    sizes: dict[str, Any] = {"word_size": len(next(iter(found.values())))} if found else {}
    sizes["vocab_size"] = len(vocabulary.words)
    model: Any
    if kind == "pcnn":
        model = PCNNForRelationExtraction(PCNNConfig(**sizes, **settings))
    else:
        model = BiLSTMForRelationExtraction(BiLSTMConfig(**sizes, **settings))
    with torch.no_grad():
        for number, vector in found.items():
            model.words.words.weight[number] = torch.from_numpy(vector).float()
    return model, vocabulary.tokenizer()
