"""Semantic similarity of sentence pairs: does the cosine of two embeddings rank pairs as people do?

The data set STS-B is such a file: ``score``, ``sentence1``, ``sentence2``. Nothing is trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compresskit.calibrate.batches import collate, encode, padding
from compresskit.calibrate.outputs import output_kind
from compresskit.calibrate.sources import read_records, require_text
from compresskit.errors import DataError, UsageError
from compresskit.tasks.fidelity import outputs
from compresskit.tasks.scores import Score

COLUMNS = ("score", "sentence1", "sentence2")


def read_pairs(path: Path, samples: int | None = None) -> tuple[list[float], list[str], list[str]]:
    """Scores, first and second sentences of the first ``samples`` rows.

    Raises:
        DataError: CK-D004 for a missing column, CK-D005 for a row that doesn't fit, CK-D003 for fewer than two rows.
    """
    scores: list[float] = []
    pairs: tuple[list[str], list[str]] = ([], [])
    for place, record in read_records(path):
        if isinstance(record, str) or not set(COLUMNS) <= set(record):
            there = "none" if isinstance(record, str) else ", ".join(record)
            raise DataError(
                "CK-D004",
                f"sentence similarity needs the columns {', '.join(COLUMNS)}",
                where=str(path),
                fix=f"columns: {there}",
            )
        scores.append(_number(record["score"], f"{path}, {place}"))
        for column, texts in zip(COLUMNS[1:], pairs, strict=True):
            texts.append(require_text(record[column], f"{path}, {place}"))
        if len(scores) == samples:
            break
    if len(scores) < 2:
        raise DataError("CK-D003", f"{len(scores)} pairs can't be ranked", where=str(path), fix="give more rows")
    return scores, *pairs


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError("CK-D005", f"the score {value!r} isn't a number", where=where, fix="mend the row")
    return number


def similarity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    data: Path,
    *,
    samples: int | None = None,
    sentence_transformer: Any = None,
    batch_size: int = 32,
) -> Score:
    """Spearman's rank correlation (x 100) of cosine and human score, Pearson's beside it.

    Raises:
        DataError: the file doesn't fit; CK-D021, if the model gives no embeddings.
        UsageError: CK-U020, if scipy isn't installed.
    """
    try:
        from scipy.stats import pearsonr, spearmanr
    except ImportError as error:
        raise UsageError(
            "CK-U020", "the task `sts` needs scipy", why=str(error), fix="pip install 'compresskit[tasks]'"
        ) from error
    if output_kind(model) != "embedding":
        raise DataError(
            "CK-D021",
            f"the task `sts` compares embeddings, and {type(model).__name__} gives none",
            fix="evaluate the base model, or another task",
        )
    scores, first, second = read_pairs(data, samples)
    vectors = embed(model, tokenizer, [*first, *second], sentence_transformer, batch_size)
    left, right = vectors[: len(first)], vectors[len(first) :]
    cosines = torch.nn.functional.cosine_similarity(left.double(), right.double()).numpy()
    if cosines.std() == 0 or len(set(scores)) == 1:
        raise DataError("CK-D003", "all pairs score alike: there is nothing to rank", where=str(data))
    value = 100 * float(spearmanr(scores, cosines).statistic)
    return Score("spearman", value, len(scores), {"pearson": 100 * float(pearsonr(scores, cosines).statistic)})


def embed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    texts: Sequence[str],
    sentence_transformer: Any = None,
    batch_size: int = 32,
    max_length: int = 256,
) -> Tensor:
    """Embeddings of ``texts`` in their order, (N, D) float32. Equal texts are run once, similar lengths together."""
    unique = list(dict.fromkeys(texts))
    rows = encode(unique, tokenizer, model, max_length)
    if len(rows) != len(unique):
        raise DataError("CK-D005", "some sentences give no token", fix="remove empty rows")
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    fill = padding(tokenizer)
    batches = [
        collate([rows[index] for index in order[start : start + batch_size]], fill)
        for start in range(0, len(order), batch_size)
    ]
    found = torch.cat(outputs(model, batches, sentence_transformer=sentence_transformer))
    places = {unique[index]: place for place, index in enumerate(order)}
    return found[[places[text] for text in texts]]
