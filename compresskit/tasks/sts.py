"""Semantic similarity of sentence pairs: does the cosine of two embeddings rank pairs as people do?

The data set STS-B is such a file: ``score``, ``sentence1``, ``sentence2``. Nothing is trained.

Shapes: N pairs, R resamples, M different sentences, D embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from compresskit.calibrate.sources import require_text
from compresskit.errors import DataError, UsageError
from compresskit.tasks.data import records
from compresskit.tasks.embedding import embeddable, embedding_reduction, unit_length
from compresskit.tasks.scores import Score
from compresskit.tasks.workload import Arrays, Facts, Options, Task, Workload, fill_of, padded, rows_of_texts

COLUMNS = ("score", "sentence1", "sentence2")


def read_pairs(path: str | Path, samples: int | None = None) -> tuple[list[float], list[str], list[str]]:
    """Scores, first and second sentences of the first ``samples`` rows.

    Raises:
        DataError: CK-D004 for a missing column, CK-D005 for a row that doesn't fit, CK-D003 for fewer than two rows.
    """
    scores: list[float] = []
    pairs: tuple[list[str], list[str]] = ([], [])
    for place, record in records(path):
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


def _scipy_stats() -> ModuleType:
    try:
        import scipy.stats
    except ImportError as error:
        raise UsageError(
            "CK-U020", "the task `sts` needs scipy", why=str(error), fix="pip install 'compresskit[tasks]'"
        ) from error
    found: ModuleType = scipy.stats
    return found


class Similarity(Task):
    """Spearman's rank correlation (x 100) of cosine and human score, Pearson's beside it.

    Equal sentences are run once. ``statistics`` are the human score and the cosine of each pair.
    """

    name = "sts"
    metric = "spearman"

    def prepare(self, data: str | Path, tokenizer: Any, facts: Facts, options: Options) -> Workload:
        if not embeddable(facts):
            raise self._refuse_model(facts, "embeddings", "evaluate the base model, or another task")
        _scipy_stats()
        scores, first, second = read_pairs(data, options.samples)
        if len(set(scores)) == 1:
            raise _all_alike(str(data))
        unique = list(dict.fromkeys([*first, *second]))
        rows = rows_of_texts(unique, tokenizer, facts, options.max_length or facts.longest_text)
        batches, order = padded(rows, options.batch_size, fill_of(tokenizer))
        places = {text: place for place, text in enumerate(unique)}
        reference = {
            "gold": np.array(scores),
            "first": np.array([places[text] for text in first]),
            "second": np.array([places[text] for text in second]),
        }
        return Workload(self.name, batches, embedding_reduction(facts), order, reference, len(scores), str(data))

    def score(self, workload: Workload, outputs: Sequence[Arrays]) -> Score:
        stats, reference = _scipy_stats(), workload.reference
        vectors = workload.rows_of(outputs, "embedding").astype(np.float64)
        unit = unit_length(vectors)
        cosines = (unit[reference["first"]] * unit[reference["second"]]).sum(-1)
        if cosines.std() == 0:
            raise _all_alike(workload.data)
        gold = reference["gold"]
        return Score(
            self.metric,
            100 * float(stats.spearmanr(gold, cosines).statistic),
            workload.rows,
            {"pearson": 100 * float(stats.pearsonr(gold, cosines).statistic)},
            task=self.name,
            scores=cosines,
            statistics=np.stack([gold, cosines], axis=1),
            columns=("gold", "cosine"),
            vectors=vectors,
        )

    def values(self, statistics: np.ndarray, picks: np.ndarray) -> np.ndarray:
        """Spearman's correlation of each resample: Pearson's of the ranks that values have within it."""
        ranks = [_scipy_stats().rankdata(statistics[:, column][picks], axis=1) for column in (0, 1)]
        left, right = (rank - rank.mean(1, keepdims=True) for rank in ranks)
        with np.errstate(invalid="ignore", divide="ignore"):  # resamples that all score alike have no correlation: NaN
            found: np.ndarray = 100 * (left * right).sum(1) / np.sqrt((left**2).sum(1) * (right**2).sum(1))
        return found


def _all_alike(where: str) -> DataError:
    return DataError("CK-D003", "all pairs score alike: there is nothing to rank", where=where, fix="give other rows")
