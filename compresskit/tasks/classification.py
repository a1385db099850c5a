"""Classification of single texts: accuracy and macro F1.

A model with a head answers by itself. On the embeddings of one without, a logistic regression is trained for each model
anew: what is scored is how well the classes can be told apart by them.

Shapes: N texts, C classes, D embedding size, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.calibrate.sources import choose_column, require_text
from compresskit.errors import DataError, UsageError
from compresskit.tasks.data import records
from compresskit.tasks.embedding import embeddable, embedding_reduction, unit_length
from compresskit.tasks.scores import Score
from compresskit.tasks.workload import Arrays, Facts, Options, Task, Workload, fill_of, padded, rows_of_texts

LABEL_COLUMNS = ("label", "labels", "class", "category", "target")
_LOGITS = "compresskit.numerics.reductions:class_logits"
_STRENGTH = 10.0
_STEPS = 2000


def read_labelled(
    path: str | Path, samples: int | None = None, text: str | None = None, label: str | None = None
) -> tuple[list[str], list[str], list[str]]:
    """Texts, the names of their labels, and the places of the first ``samples`` rows.

    Raises:
        DataError: CK-D004 for a missing column, CK-D003 for no row.
    """
    texts, labels, places = [], [], []
    for place, record in records(path):
        where = f"{path}, {place}"
        if isinstance(record, str):
            raise DataError("CK-D004", "classification needs a column of labels", where=str(path))
        wanted = label or next((name for name in LABEL_COLUMNS if name in record), LABEL_COLUMNS[0])
        labels.append(str(record[choose_column(list(record), wanted, Path(path))]).strip())
        texts.append(require_text(record[choose_column(list(record), text, Path(path))], where))
        places.append(where)
        if len(texts) == samples:
            break
    if not texts:
        raise DataError("CK-D003", "the file holds no row", where=str(path), fix="give a file with examples")
    return texts, labels, places


def numbers(labels: Sequence[str], known: Mapping[str, int], places: Sequence[str]) -> np.ndarray:
    """Numbers of ``labels``, (N,) int64.

    Raises:
        DataError: CK-D051, a label that isn't known.
    """
    for name, where in zip(labels, places, strict=True):
        if name not in known:
            raise DataError(
                "CK-D051",
                f"the label {name!r} isn't one of the model's",
                where=where,
                fix=f"known: {', '.join(list(known)[:12])}",
            )
    return np.array([known[name] for name in labels], dtype=np.int64)


class Classification(Task):
    """Accuracy (x 100), macro F1 beside it. ``statistics`` say of each text whether it was right."""

    name = "classification"
    metric = "accuracy"

    def prepare(self, data: str | Path, tokenizer: Any, facts: Facts, options: Options) -> Workload:
        if facts.kind == "classification":
            return self._with_head(data, tokenizer, facts, options)
        if not embeddable(facts):
            raise self._refuse_model(
                facts, "a classification head, or embeddings to train a probe on", "evaluate another task"
            )
        if options.train is None:
            raise DataError(
                "CK-D021",
                f"the task `classification` needs a classification head, and {facts.architecture or 'this model'}"
                " has none",
                fix="give a file to train a probe on its embeddings: `train: FILE`",
            )
        return self._probe(data, options.train, tokenizer, facts, options)

    def _with_head(self, data: str | Path, tokenizer: Any, facts: Facts, options: Options) -> Workload:
        texts, labels, places = read_labelled(data, options.samples)
        gold = numbers(labels, facts.labels, places)
        rows = rows_of_texts(texts, tokenizer, facts, options.max_length or facts.longest_text)
        batches, order = padded(rows, options.batch_size, fill_of(tokenizer))
        reference = {"gold": gold, "classes": facts.classes}
        return Workload(self.name, batches, _LOGITS, order, reference, len(texts), str(data))

    def _probe(self, data: str | Path, train: str | Path, tokenizer: Any, facts: Facts, options: Options) -> Workload:
        _require_scikit_learn()
        texts, labels, places = read_labelled(data, options.samples)
        seen, names, _ = read_labelled(train, options.train_samples)
        classes = sorted(set(names))
        if len(classes) < 2:
            raise DataError(
                "CK-D054", f"all texts have the label {classes[0]!r}", where=str(train), fix="give more rows"
            )
        known = {name: number for number, name in enumerate(classes)}
        reference = {
            "gold": numbers(labels, known, places),
            "train": np.array([known[name] for name in names]),
            "classes": tuple(classes),
        }
        rows = rows_of_texts([*texts, *seen], tokenizer, facts, options.max_length or facts.longest_text)
        batches, order = padded(rows, options.batch_size, fill_of(tokenizer))
        return Workload(self.name, batches, embedding_reduction(facts), order, reference, len(texts), str(data))

    def score(self, workload: Workload, outputs: Sequence[Arrays]) -> Score:
        gold, classes = workload.reference["gold"], workload.reference["classes"]
        if "train" in workload.reference:
            logits, vectors = _probed(workload, outputs)
        else:
            logits, vectors = workload.rows_of(outputs, "logits"), None
        if logits.ndim != 2 or gold.max() >= logits.shape[1]:
            raise DataError(
                "CK-D053",
                f"logits of shape {logits.shape} are no scores of {len(classes)} classes for each text",
                fix="evaluate a sequence classifier",
            )
        predicted = logits.argmax(-1)
        right = (predicted == gold).astype(np.float64)
        return Score(
            self.metric,
            100 * float(right.mean()),
            workload.rows,
            {"macro_f1": 100 * macro_f1(gold, predicted), "probe": "train" in workload.reference},
            task=self.name,
            scores=right,
            statistics=right[:, None],
            columns=("right",),
            predictions=predicted,
            gold=gold,
            classes=classes,
            logits=logits,
            vectors=vectors,
        )

    def values(self, statistics: np.ndarray, picks: np.ndarray) -> np.ndarray:
        """Accuracy of each resample."""
        found: np.ndarray = 100 * statistics[:, 0][picks].mean(1)
        return found


def macro_f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Mean of F1 over the classes that occur in either vector, (N,)."""
    _require_scikit_learn()
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, average="macro", zero_division=0))


def _probed(workload: Workload, outputs: Sequence[Arrays]) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of a probe, (N, C), trained on the embeddings of the training texts, and those of the test texts."""
    from sklearn.linear_model import LogisticRegression

    vectors = unit_length(workload.rows_of(outputs, "embedding").astype(np.float64))
    test, train = vectors[: workload.rows], vectors[workload.rows :]
    probe = LogisticRegression(C=_STRENGTH, max_iter=_STEPS).fit(train, workload.reference["train"])
    logits = probe.decision_function(test)
    # Two classes have one log-odds, of the second.
    return (np.stack([np.zeros_like(logits), logits], axis=1) if logits.ndim == 1 else logits), test


def _require_scikit_learn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "CK-U020",
            "the task `classification` needs scikit-learn",
            why=str(error),
            fix="pip install 'compresskit[tasks]'",
        ) from error
