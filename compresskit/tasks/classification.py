"""Classification of single texts with the labels that the model was trained on: accuracy and macro F1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compresskit.calibrate.batches import collate, encode, padding
from compresskit.calibrate.forward import evaluating
from compresskit.calibrate.outputs import output_kind, outputs_of
from compresskit.calibrate.sources import choose_column, read_records, require_text
from compresskit.errors import DataError
from compresskit.tasks.scores import Score

LABEL_COLUMNS = ("label", "labels", "class", "category", "target")


def accuracy(gold: Tensor, predicted: Tensor) -> float:
    """Share of equal entries of two label vectors, (N,)."""
    return float((gold == predicted).double().mean())


def macro_f1(gold: Tensor, predicted: Tensor) -> float:
    """Mean over classes of F1, over the classes that occur in either vector, (N,)."""
    scores = []
    for label in torch.unique(torch.cat([gold, predicted])):
        both = ((gold == label) & (predicted == label)).sum().double()
        either = (gold == label).sum() + (predicted == label).sum()
        scores.append(2 * both / either)
    return float(torch.stack(scores).mean())


def read_labelled(
    path: Path, model: PreTrainedModel, samples: int | None = None, text: str | None = None, label: str | None = None
) -> tuple[list[str], Tensor]:
    """Texts and the model's numbers of their labels, (N,) int64, of the first ``samples`` rows.

    A label is a name in ``config.label2id`` or one of its numbers.

    Raises:
        DataError: CK-D004 for a missing column, CK-D005 for a label that the model doesn't know.
    """
    known = {str(name): int(number) for name, number in (model.config.label2id or {}).items()}
    known = {**{str(number): number for number in range(model.config.num_labels or 0)}, **known}
    texts, labels = [], []
    for place, record in read_records(path):
        where = f"{path}, {place}"
        if isinstance(record, str):
            raise DataError("CK-D004", "classification needs a column of labels", where=str(path))
        wanted = label or next((name for name in LABEL_COLUMNS if name in record), LABEL_COLUMNS[0])
        name = str(record[choose_column(list(record), wanted, path)]).strip()
        if name not in known:
            raise DataError(
                "CK-D005",
                f"the label {name!r} isn't one of the model's",
                where=where,
                fix=f"known: {', '.join(list(known)[:12])}",
            )
        texts.append(require_text(record[choose_column(list(record), text, path)], where))
        labels.append(known[name])
        if len(texts) == samples:
            break
    if not texts:
        raise DataError("CK-D003", "the file holds no row", where=str(path))
    return texts, torch.tensor(labels)


def classify(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    data: Path,
    *,
    samples: int | None = None,
    sentence_transformer: Any = None,
    batch_size: int = 32,
    max_length: int = 256,
) -> Score:
    """Accuracy (x 100), macro F1 beside it.

    Raises:
        DataError: the file doesn't fit; CK-D021, if the model has no classification head.
    """
    if output_kind(model) != "classification":
        raise DataError(
            "CK-D021",
            f"the task `classification` needs a classification head, and {type(model).__name__} has none",
            fix="evaluate another task",
        )
    texts, gold = read_labelled(data, model, samples)
    rows = encode(texts, tokenizer, model, max_length)
    if len(rows) != len(texts):
        raise DataError("CK-D005", "some texts give no token", where=str(data), fix="remove empty rows")
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    predicted = torch.empty(len(rows), dtype=torch.int64)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            logits = outputs_of(model, collate([rows[index] for index in chosen], padding(tokenizer)))
            predicted[chosen] = logits.argmax(-1).cpu()
    return Score("accuracy", 100 * accuracy(gold, predicted), len(texts), {"macro_f1": 100 * macro_f1(gold, predicted)})
