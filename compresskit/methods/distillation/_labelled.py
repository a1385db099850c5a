"""Labelled rows for distillation: texts with columns, or sentences with two entities, as a model takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.batches import collate, encode, padding
from compresskit.errors import DataError
from compresskit.tasks.classification import numbers
from compresskit.tasks.data import records
from compresskit.tasks.relation_extraction import collate_relations, encode_instances, read_instances, relation_numbers
from compresskit.train.agreement import class_names
from compresskit.train.labelled import Labelled

ENTITY_START, WORDS = "compresskit_entity_start", ("compresskit_pcnn", "compresskit_bilstm")


@dataclass(frozen=True)
class Rows:
    """Rows as one model takes them, and the bag key of each."""

    data: Labelled
    groups: tuple[str, ...]


def takes_entities(model: PreTrainedModel) -> bool:
    """Whether the model classifies sentences with two entities."""
    return model.config.model_type in (ENTITY_START, *WORDS)


def read_rows(
    path: str, settings: Any, model: PreTrainedModel, tokenizer: Any, max_length: int, warn: Callable[[str], None]
) -> Rows:
    """The rows of ``path``, by the columns that the recipe's ``data`` names.

    Raises:
        DataError: a column that lacks (CK-D004), an unknown label (CK-D051), an empty bag key (CK-D061).
    """
    known = {name: number for number, name in class_names(model).items()}
    if takes_entities(model):
        return _sentences(path, known, model, tokenizer, max_length)
    texts, labels, groups, places = [], [], [], []
    for place, record in records(path):
        where = f"{path}, {place}"
        texts.append(str(_column(record, settings.text, where)))
        labels.append(str(_column(record, settings.label, where)).strip())
        groups.append(where if settings.group is None else str(_column(record, settings.group, where)).strip())
        places.append(where)
        if not groups[-1]:
            raise DataError(
                "CK-D061",
                "the bag key is empty",
                where=where,
                why="all rows without a key would be one bag",
                fix="give each row that belongs to no other a key of its own",
            )
    if not texts:
        raise DataError("CK-D003", "the file holds no row", where=path, fix="give a file with examples")
    accepted = known | {str(number): number for number in known.values()}
    gold = torch.from_numpy(numbers(labels, accepted, places))
    rows = encode(texts, tokenizer, model, max_length, warn=warn)
    if len(rows) != len(texts):
        raise DataError("CK-D003", "a text has no token", where=path, fix="remove empty texts")
    fill = padding(tokenizer)
    return Rows(Labelled(rows, gold, lambda items: collate(items, fill), lambda row: len(row["input_ids"])), (*groups,))


def _column(record: Mapping[str, Any] | str, name: str, where: str) -> Any:
    if isinstance(record, str) or record.get(name) is None:
        raise DataError(
            "CK-D004", f"there is no column {name!r}", where=where, fix="name the columns under `data:` in the recipe"
        )
    return record[name]


def _sentences(path: str, known: Mapping[str, int], model: PreTrainedModel, tokenizer: Any, max_length: int) -> Rows:
    instances = read_instances(path)
    gold = relation_numbers(instances, known, path)
    pairs = tuple(item.pair for item in instances)
    if tokenizer is None:
        raise DataError("CK-D008", "the model has no tokenizer", where=path, fix="put its tokenizer into its folder")
    rows = encode_instances(instances, tokenizer, max_length, marked=model.config.model_type == ENTITY_START)
    fill = padding(tokenizer)
    return Rows(Labelled(rows, gold, lambda items: collate_relations(items, fill), lambda row: len(row.ids)), pairs)


def require_all_classes(labels: Tensor, names: Mapping[int, str], path: str) -> None:
    """Raises DataError CK-D067 for a class without a row."""
    seen = set(labels.tolist())
    missing: Sequence[str] = [name for number, name in names.items() if number not in seen]
    if missing:
        raise DataError(
            "CK-D067",
            f"{len(missing)} classes have no row in the training data",
            where=f"{path}: {', '.join(missing[:6])}",
            fix="add rows of these classes, or use models without them",
        )
