"""Relation extraction as a task: the area under precision and recall of (bag, relation), and what goes with it.

The data are a file of sentences in any of ``FORMATS``, or a folder with ``test`` (or ``test_ds``) and perhaps ``dev``;
on the latter one temperature is fitted, so that a gain by mere calibration can be told from a better ranking.

Shapes: N sentences, C relations (0: none), G bags, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.errors import DataError
from compresskit.tasks.relation_extraction.encoding import Encoded, encode_instances, relation_numbers
from compresskit.tasks.relation_extraction.evaluation import (
    candidates,
    evaluate,
    fit_temperature,
    log_softmax,
    ranked,
    resampled_average_precision,
)
from compresskit.tasks.relation_extraction.instances import Instance
from compresskit.tasks.relation_extraction.readers import read_instances, split_file
from compresskit.tasks.scores import Score
from compresskit.tasks.workload import (
    Arrays,
    Facts,
    Options,
    Task,
    Workload,
    fill_of,
    padded,
    refuse_foreign,
    require_tokenizer,
)

LONGEST = 128
"""Tokens that a sentence is cut to, around its entities."""
CURVE_POINTS = 100

_LOGITS = "compresskit.numerics.reductions:class_logits"


class RelationExtraction(Task):
    """Area under the precision-recall curve (x 100) over all pairs of a bag and a relation that isn't none.

    Precision at N, micro F1 without none, NLL and calibration error stand beside it; ``statistics`` are of each bag the
    best probability of each relation, then whether it is true. Bags are drawn, not sentences: those of a bag hang
    together.
    """

    name = "relation_extraction"
    metric = "pr_auc"

    def look_for(self, data: str | Path) -> None:
        super().look_for(data)
        _files(data)

    def prepare(self, data: str | Path, tokenizer: Any, facts: Facts, options: Options) -> Workload:
        if facts.kind != "relations":
            raise self._refuse_model(facts, "a classifier of relations", "evaluate a model of compresskit.models")
        require_tokenizer(tokenizer)
        test, dev = _files(data)
        instances = read_instances(test, limit=options.samples)
        held_out = read_instances(dev) if dev is not None else []
        known = {name: facts.labels[name] for name in facts.classes}
        gold = relation_numbers(instances, known, str(test)).numpy()
        if not (gold > 0).any():
            raise DataError(
                "CK-D003",
                "no sentence has a relation, so there is nothing to find",
                where=str(test),
                fix=f"give rows with relations other than {facts.classes[0]!r}",
            )
        length = min(options.max_length or LONGEST, facts.longest)
        marked = facts.architecture.startswith("EntityStart")
        encoded = encode_instances([*instances, *held_out], tokenizer, length, marked=marked)
        refuse_foreign([{"input_ids": list(row.ids)} for row in encoded], facts)
        batches, order = _batches(encoded, options.batch_size, fill_of(tokenizer))
        reference = {
            "gold": gold,
            "pairs": [item.pair for item in instances],
            "dev": _numbers(held_out, known, str(dev)),
            "classes": facts.classes,
        }
        bags = len({item.pair for item in instances})
        return Workload(self.name, batches, _LOGITS, order, reference, bags, str(data))

    def score(self, workload: Workload, outputs: Sequence[Arrays]) -> Score:
        gold, pairs, dev, classes = (workload.reference[name] for name in ("gold", "pairs", "dev", "classes"))
        logits = workload.rows_of(outputs, "logits")
        if logits.ndim != 2 or logits.shape[1] != len(classes):
            raise DataError(
                "CK-D053",
                f"logits of shape {logits.shape} are no scores of {len(classes)} relations for each sentence",
                fix="evaluate a classifier of relations",
            )
        test = logits[: len(gold)]
        temperature = fit_temperature(logits[len(gold) :], dev) if len(dev) else None
        scores, truth = candidates(np.exp(log_softmax(test)), gold, pairs)
        recall, precision = ranked(scores, truth).curve(CURVE_POINTS)
        details: dict[str, Any] = evaluate(test, gold, pairs, temperature)
        value = details.pop("auc")
        details["sentences"] = len(gold)
        details["pr_curve"] = [[round(float(r), 5), round(float(p), 5)] for r, p in zip(recall, precision, strict=True)]
        relations = classes[1:]
        return Score(
            self.metric,
            value,
            len(scores),
            details,
            task=self.name,
            scores=_nats(test, gold, pairs),
            statistics=np.concatenate([scores, truth.astype(np.float64)], axis=1),
            columns=(*(f"score:{name}" for name in relations), *(f"true:{name}" for name in relations)),
            predictions=test.argmax(-1),
            gold=gold,
            classes=classes,
            logits=test,
        )

    def values(self, statistics: np.ndarray, picks: np.ndarray) -> np.ndarray:
        """The area of each resample of bags."""
        half = statistics.shape[1] // 2
        found = resampled_average_precision(statistics[:, :half], statistics[:, half:] > 0, picks)
        return 100 * found


def _files(data: str | Path) -> tuple[Path, Path | None]:
    """The sentences to score, and those that the temperature is fitted on."""
    path = Path(data)
    if not path.is_dir():
        return path, None
    test = split_file(path, "test") or split_file(path, "test_ds")
    if test is None:
        raise DataError(
            "CK-D001",
            "the folder holds no sentences to score",
            where=str(path),
            fix="put test.jsonl beside dev.jsonl (.txt, .json and .gz are read, too), or give a file",
        )
    return test, split_file(path, "dev")


def _numbers(instances: Sequence[Instance], known: Mapping[str, int], where: str) -> np.ndarray:
    return relation_numbers(instances, known, where).numpy() if instances else np.zeros(0, dtype=np.int64)


def _batches(
    encoded: Sequence[Encoded], size: int, fill: Mapping[str, int]
) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """Padded tokens and the spans of both entities, (B, 2)."""
    rows = [{"input_ids": list(row.ids), "attention_mask": [1] * len(row.ids)} for row in encoded]
    batches, order = padded(rows, size, fill)
    start = 0
    for batch in batches:
        chosen = order[start : start + len(batch["input_ids"])]
        batch["head"] = np.array([encoded[number].head for number in chosen], dtype=np.int64)
        batch["tail"] = np.array([encoded[number].tail for number in chosen], dtype=np.int64)
        start += len(chosen)
    return batches, order


def _nats(logits: np.ndarray, gold: np.ndarray, pairs: Sequence[str]) -> np.ndarray:
    """Mean -log p(gold) of the sentences of each bag, (G,)."""
    nats = -log_softmax(logits)[np.arange(len(gold)), gold]
    places = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
    bags = np.array([places[pair] for pair in pairs])
    found: np.ndarray = np.bincount(bags, nats) / np.bincount(bags)
    return found
