"""Rows with several predictions for MiDTD: tagged sentences, and texts whose every next word is one.

Shapes: N rows, M positions, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from compresskit.calibrate.batches import collate, encode, padding
from compresskit.errors import DataError
from compresskit.methods.distillation._labelled import Rows
from compresskit.tasks.classification import numbers
from compresskit.tasks.data import records
from compresskit.tasks.token_classification import OUTSIDE, encode_words, read_tagged, spans
from compresskit.train.agreement import class_names
from compresskit.train.labelled import Labelled
from compresskit.train.positions import Positions, run_positions


def tagged_rows(path: str, model: PreTrainedModel, tokenizer: Any, max_length: int) -> Rows:
    """Sentences with a tag for each word, at its first token.

    The bag of a word in a mention is the mention's surface form and the word's place in it; other words stand alone.

    Raises:
        DataError: as ``read_tagged``; CK-D051, a tag that the model doesn't have.
    """
    known = {name: number for number, name in class_names(model).items()}
    sentences = read_tagged(path)
    rows, pieces = encode_words([words for words, _ in sentences], tokenizer, max_length)
    labels: list[str] = []
    places: list[str] = []
    keys: list[str] = []
    for number, ((words, tags), kept) in enumerate(zip(sentences, pieces, strict=True)):
        labels += tags[: len(kept)]
        places += [f"{path}, sentence {number + 1}"] * len(kept)
        keys += _mentions(words, tags, f"{path}:{number}")[: len(kept)]
    gold = torch.from_numpy(numbers(labels, known, places))
    positions = Positions.of([torch.from_numpy(kept) for kept in pieces])
    return Rows(_labelled(rows, gold, tokenizer, positions), tuple(keys))


def _mentions(words: Sequence[str], tags: Sequence[str], where: str) -> list[str]:
    """The bag key of each word."""
    found = [f"{where}:{place}" for place in range(len(words))]
    for _, start, end in spans(tags):
        surface = " ".join(words[start:end])
        found[start:end] = [f"mention {surface!r} {place}" for place in range(end - start)]
    return found


def text_rows(
    path: str, settings: Any, model: PreTrainedModel, tokenizer: Any, max_length: int, warn: Callable[[str], None]
) -> Rows:
    """Texts whose tokens but the first are to be predicted; each is a bag of one.

    Raises:
        DataError: CK-D004, no such column; CK-D003, no text of two tokens; CK-D095, a column of bags.
    """
    if settings.group is not None:
        raise DataError(
            "CK-D095",
            "places of texts can't be put into bags",
            where=f"{path}: group {settings.group!r}",
            why="which place of one text belongs to which of another isn't known",
            fix="leave `group` out for language models",
        )
    texts = [_text(record, settings.text, f"{path}, {place}") for place, record in records(path)]
    rows = [row for row in encode(texts, tokenizer, model, max_length, warn=warn) if len(row["input_ids"]) > 1]
    if not rows:
        raise DataError("CK-D003", "the file holds no text of two tokens", where=path, fix="give a file with texts")
    gold = torch.cat([torch.tensor(row["input_ids"][1:]) for row in rows])
    positions = Positions.of([torch.arange(len(row["input_ids"]) - 1) for row in rows])
    return Rows(_labelled(rows, gold, tokenizer, positions), ())


def _text(record: Mapping[str, Any] | str, column: str, where: str) -> str:
    if isinstance(record, str):
        return record
    if record.get(column) is None:
        raise DataError(
            "CK-D004", f"there is no column {column!r}", where=where, fix="name the column under `data: text`"
        )
    return str(record[column])


def _labelled(rows: Sequence[Any], gold: torch.Tensor, tokenizer: Any, positions: Positions) -> Labelled:
    fill = padding(tokenizer)
    return Labelled(rows, gold, lambda items: collate(items, fill), _length, positions)


def _length(row: Any) -> int:
    return len(row["input_ids"])


def span_score(dev: Rows, model: PreTrainedModel) -> Callable[[Any], float]:
    """F1 of whole spans on ``dev``, from 0 to 1."""
    names = class_names(model)
    positions = dev.data.positions
    if positions is None:
        raise ValueError("rows without positions")
    gold = _spans([names[number] for number in dev.data.labels.tolist()], positions)

    def score(student: Any) -> float:
        found = torch.empty(len(dev.data.labels), dtype=torch.int64)
        for places, logits in run_positions(student, dev.data.rows, dev.data.collate, positions, dev.data.length):
            found[places] = logits.argmax(-1).cpu()
        ours = _spans([names[number] for number in found.tolist()], positions)
        total = len(ours) + len(gold)
        return 2 * len(ours & gold) / total if total else 1.0

    return score


def _spans(tags: Sequence[str], positions: Positions) -> set[tuple[int, str, int, int]]:
    bounds = positions.starts.tolist()
    found = set()
    for row, (start, end) in enumerate(pairwise(bounds)):
        sentence = [tag if tag[:2] in ("B-", "I-") else OUTSIDE for tag in tags[start:end]]
        found |= {(row, *span) for span in spans(sentence)}
    return found


def likelihood_score(dev: Rows) -> Callable[[Any], float]:
    """Mean log-likelihood of the next token on ``dev``, nats."""
    positions = dev.data.positions
    if positions is None:
        raise ValueError("rows without positions")

    def score(student: Any) -> float:
        total = 0.0
        for places, logits in run_positions(student, dev.data.rows, dev.data.collate, positions, dev.data.length):
            total -= float(F.cross_entropy(logits, dev.data.labels[places].to(logits.device), reduction="sum"))
        return total / len(dev.data.labels)

    return score
