"""Quality of outputs, whatever engine gave them: a task's batches, its score with an interval, and two scores compared.

The same examples go through all models, so differences are resampled in pairs: what is hard for both cancels out.

Shapes: N examples, K sums, R resamples, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.bench.record import Quality as QualityRecord
from compresskit.errors import DataError
from compresskit.numerics.reductions import divergence
from compresskit.numerics.statistics import interval, mcnemar
from compresskit.tasks import TASKS, Facts, Options, Score, Workload, named
from compresskit.tasks.embedding import unit_length
from compresskit.tasks.workload import Arrays

Quality = Score

LEVEL = 0.95
RESAMPLES = 2_000
_CHUNK = 2_000_000
_MOST_ROWS = 200_000


def prepare(
    task: str,
    data: str | Path,
    tokenizer: Any,
    samples: int | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    **options: Any,
) -> Workload:
    """The batches to run and what their outputs are held against.

    Args:
        task: a name of ``compresskit.tasks.TASKS``.
        config: ``config.json`` of the model; read from ``folder`` if that is given instead.
        folder: the checkpoint, whose sentence-transformers files say how to pool.
        options: ``train``, ``train_samples``, ``max_length``, ``stride``, ``batch_size``.

    Raises:
        RecipeError: CK-R033, no such task.
        DataError: the file doesn't fit the task, or the model doesn't.
    """
    chosen = named(task)
    return chosen.prepare(data, tokenizer, facts(config, folder), Options(samples=samples, **options))


def facts(config: Mapping[str, Any] | None, folder: Path | None) -> Facts:
    """What tasks have to know of the model, from its files."""
    from compresskit.checkpoint.sentence_transformer import describe

    def read(name: str) -> Any:
        path = folder / name if folder is not None else None
        return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None

    content = config or read("config.json") or {}
    return Facts.of(content, describe(read, str(folder)) if folder is not None else None)


def score(workload: Workload, outputs: Sequence[Arrays]) -> Quality:
    """The outputs of each batch, as the model gave them or reduced, scored.

    Raises:
        DataError: CK-D053, they aren't outputs of this workload.
    """
    return TASKS[workload.task].score(workload, outputs)


def resampled(quality: Quality, picks: np.ndarray) -> np.ndarray:
    """The metric on resampled examples, (R,), from picks (R, N)."""
    task = TASKS[quality.task]
    step = max(1, _CHUNK // max(1, picks.shape[1]))
    parts = [task.values(quality.statistics, picks[start : start + step]) for start in range(0, len(picks), step)]
    return np.concatenate(parts)


def draw(count: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Numbers of examples, drawn with replacement, (R, N)."""
    return np.random.default_rng(seed).integers(0, count, size=(resamples, count), dtype=np.int32)


def confidence(
    quality: Quality, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The bootstrap interval of the metric over examples."""
    return interval(_defined(resampled(quality, draw(quality.rows, resamples, seed))), level)


def against(
    baseline: Quality, other: Quality, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """``other`` compared with ``baseline`` on the same examples.

    Returns:
        ``difference`` (other minus baseline, in the metric's unit) with ``ci``; ``equal`` if every example scores the
        same; where there are right and wrong answers ``p_mcnemar``, ``flips`` (% of answers that became right or wrong)
        and ``worst_class`` (largest drop of a class's recall, in points); where there are distributions ``kl_mean`` and
        ``kl_p95`` in nats and ``top1_agreement`` in %; where there are embeddings ``cosine_mean`` and ``cosine_min``.

    Raises:
        DataError: CK-D053, they are of different tasks or examples.
    """
    if (baseline.task, baseline.statistics.shape) != (other.task, other.statistics.shape):
        raise DataError(
            "CK-D053",
            "two scores that aren't of the same examples can't be compared",
            why=f"{baseline.task} of {baseline.rows} and {other.task} of {other.rows}",
            fix="score both on the same workload",
        )
    picks = draw(baseline.rows, resamples, seed)
    draws = resampled(other, picks) - resampled(baseline, picks)
    found: dict[str, Any] = {
        "difference": other.value - baseline.value,
        "unit": baseline.unit,
        "ci": list(interval(_defined(draws), level)),
        "level": level,
        "higher_is_better": baseline.higher_is_better,
        "equal": bool(np.array_equal(baseline.statistics, other.statistics)),
    }
    if baseline.columns == ("right",):
        found |= _answers(baseline, other)
    if baseline.logits is not None and other.logits is not None and baseline.logits.shape == other.logits.shape:
        nats = divergence(baseline.logits, other.logits)
        found |= {"kl_mean": float(nats.mean()), "kl_p95": float(np.quantile(nats, 0.95)), "kl_count": len(nats)}
        found["top1_agreement"] = 100 * float((baseline.logits.argmax(-1) == other.logits.argmax(-1)).mean())
    if baseline.vectors is not None and other.vectors is not None and baseline.vectors.shape == other.vectors.shape:
        cosines = (unit_length(baseline.vectors) * unit_length(other.vectors)).sum(-1)
        found |= {"cosine_mean": float(cosines.mean()), "cosine_min": float(cosines.min())}
    return found


def _answers(baseline: Quality, other: Quality) -> dict[str, Any]:
    before, after = baseline.scores > 0, other.scores > 0
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    found: dict[str, Any] = {
        "p_mcnemar": mcnemar(lost, won),
        "lost": lost,
        "won": won,
        "flips": 100 * (lost + won) / len(before),
    }
    if baseline.gold is not None:
        found["worst_class"] = _worst_class(baseline.gold, before, after, baseline.classes)
    return found


def _worst_class(gold: np.ndarray, before: np.ndarray, after: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """The class that lost most recall. Small classes jump: ``rows`` says how many it has."""
    drops = {
        int(label): 100 * float(before[gold == label].mean() - after[gold == label].mean()) for label in np.unique(gold)
    }
    label = max(drops, key=lambda number: drops[number])
    name = classes[label] if label < len(classes) else str(label)
    return {"name": name, "drop": drops[label], "rows": int((gold == label).sum())}


def _defined(draws: np.ndarray) -> np.ndarray:
    """Without resamples on which the metric isn't defined (all scores alike)."""
    kept: np.ndarray = draws[np.isfinite(draws)]
    if not len(kept):
        raise DataError("CK-D053", "no resample of the examples has a score", fix="give more examples")
    return kept


def to_record(quality: Quality, compared: Mapping[str, Any] | None = None) -> QualityRecord:
    """As a benchmark record keeps it: with its interval, and the sums that all statistics are computed from."""
    details: dict[str, Any] = {**quality.details, "higher_is_better": quality.higher_is_better}
    if len(quality.statistics) <= _MOST_ROWS:
        details["statistics"] = {"columns": list(quality.columns), "rows": quality.statistics.tolist()}
    return QualityRecord(
        task=quality.task,
        metric=quality.metric,
        value=quality.value,
        unit=quality.unit,
        n=quality.rows,
        ci=confidence(quality),
        level=LEVEL,
        scores=[float(value) for value in quality.scores],
        against=dict(compared or {}),
        details=details,
    )


def recomputed(record: QualityRecord) -> tuple[float, tuple[float, float]]:
    """Value and interval of a record, from the sums that it keeps.

    Raises:
        DataError: CK-D053, it keeps none.
    """
    kept = record.details.get("statistics")
    if not kept:
        raise DataError("CK-D053", "the record keeps no statistics of its examples", fix="run the benchmark again")
    statistics = np.array(kept["rows"], dtype=np.float64)
    whole = np.arange(len(statistics))[None]
    value = float(TASKS[record.task].values(statistics, whole)[0])
    again = Score(
        record.metric, value, len(statistics), task=record.task, statistics=statistics, columns=tuple(kept["columns"])
    )
    return value, confidence(again, level=record.level or LEVEL)
