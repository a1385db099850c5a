"""Perplexity and bits per byte of a causal language model, by windows that slide over each text.

Each token but the first of a text is predicted exactly once, from the tokens of its window before it; windows overlap
by ``max_length - stride`` tokens, which are context only. Lines of a .txt file are one text, joined as they stand; rows
of other files are texts of their own.

Shapes: N windows, T tokens, V vocabulary, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.calibrate.sources import choose_column, require_text
from compresskit.errors import DataError
from compresskit.numerics.reductions import NO_TARGET
from compresskit.tasks.data import records
from compresskit.tasks.scores import Score
from compresskit.tasks.workload import (
    Arrays,
    Facts,
    Options,
    Row,
    Task,
    Workload,
    fill_of,
    padded,
    refuse_foreign,
    require_tokenizer,
)

LONGEST_WINDOW = 1024
_REDUCE = "compresskit.numerics.reductions:language"
_MOST_KEPT = 1024
_KEPT_LOGITS = 2**25
"""Logits kept for divergences: 128 MB in float32."""
_BATCH_LOGITS = 2**26


def read_running_text(path: str | Path, samples: int | None = None) -> list[str]:
    """The texts of a file, of its first ``samples`` lines or rows.

    Raises:
        DataError: CK-D003, there is none; CK-D004, no column of texts; CK-D005, a row that isn't text.
    """
    lines: list[str] = []
    rows: list[str] = []
    for place, record in records(path):
        if isinstance(record, str) and not str(path).removesuffix(".gz").endswith(".jsonl"):
            lines.append(record)
        else:
            value = record if isinstance(record, str) else record[choose_column(list(record), None, Path(path))]
            text = require_text(value, f"{path}, {place}")
            rows.extend([text] if text else [])
        if len(lines) + len(rows) == samples:
            break
    texts = ["".join(lines)] if "".join(lines).strip() else rows
    if not texts:
        raise DataError("CK-D003", "the file holds no text", where=str(path), fix="give a file with text")
    return texts


def windows(length: int, longest: int, stride: int) -> list[tuple[int, int, int]]:
    """(first token, one past the last, first predicted token) of each window over ``length`` tokens."""
    found = []
    predicted = 1
    for start in range(0, length, stride):
        end = min(start + longest, length)
        if end > predicted:
            found.append((start, end, predicted))
            predicted = end
        if end == length:
            break
    return found


class LanguageModelling(Task):
    """Perplexity of a token, bits per byte beside it. ``statistics`` are nats and predicted tokens of each window."""

    name = "language_modelling"
    metric = "perplexity"
    unit = ""
    higher_is_better = False

    def prepare(self, data: str | Path, tokenizer: Any, facts: Facts, options: Options) -> Workload:
        if facts.kind != "language":
            raise self._refuse_model(facts, "a causal language model's head", "evaluate a decoder, or another task")
        require_tokenizer(tokenizer)
        texts = read_running_text(data, options.samples)
        longest = min(options.max_length or LONGEST_WINDOW, facts.longest)
        stride = options.stride or max(1, longest // 2)
        if not 1 <= stride < longest:
            raise DataError(
                "CK-D055", f"a stride of {stride} doesn't fit windows of {longest} tokens", fix="1 to max_length - 1"
            )
        rows = [row for text in texts for row in _windows_of(text, tokenizer, longest, stride)]
        if not rows:
            raise DataError("CK-D055", "no text has two tokens: there is nothing to predict", where=str(data))
        refuse_foreign(rows, facts)
        size = facts.vocabulary or 1
        _mark_kept(rows, min(_MOST_KEPT, max(1, _KEPT_LOGITS // size)))
        batch = max(1, min(options.batch_size, _BATCH_LOGITS // (size * longest)))
        batches, order = padded(rows, batch, {**fill_of(tokenizer), "targets": NO_TARGET})
        reference = {"bytes": sum(len(text.encode()) for text in texts), "texts": len(texts)}
        return Workload(self.name, batches, _REDUCE, order, reference, len(rows), str(data))

    def score(self, workload: Workload, outputs: Sequence[Arrays]) -> Score:
        sums = [array.sum(1) for array in workload.collected(outputs, "nll")]
        tokens = [(batch["targets"] != NO_TARGET).sum(1) for batch in workload.batches]
        statistics = np.empty((workload.rows, 2))
        statistics[workload.order] = np.stack([np.concatenate(sums), np.concatenate(tokens)], axis=1)
        if not np.isfinite(statistics).all():
            raise DataError("CK-D053", "some outputs are not finite", fix="evaluate the model in float32")
        nats, count = statistics.sum(0)
        kept = np.concatenate(workload.collected(outputs, "kept"))
        return Score(
            self.metric,
            _perplexity(nats / count),
            workload.rows,
            {
                "bits_per_byte": nats / math.log(2) / workload.reference["bytes"],
                "nats_per_token": nats / count,
                "tokens_count": int(count),
                "bytes_count": workload.reference["bytes"],
            },
            task=self.name,
            unit="",
            higher_is_better=False,
            scores=statistics[:, 0] / statistics[:, 1],
            statistics=statistics,
            columns=("nats", "tokens"),
            predictions=kept.argmax(-1),
            logits=kept,
        )

    def values(self, statistics: np.ndarray, picks: np.ndarray) -> np.ndarray:
        """Perplexity of each resample of windows."""
        sums = [statistics[:, column][picks].sum(1) for column in (0, 1)]
        found: np.ndarray = np.exp(np.minimum(sums[0] / sums[1], 700.0))
        return found


def _perplexity(nats: float) -> float:
    return math.exp(min(nats, 700.0))


def _windows_of(text: str, tokenizer: Any, longest: int, stride: int) -> list[Row]:
    """Windows over the tokens of one text, with the tokenizer's own beginning."""
    ids = tokenizer(text, truncation=False, verbose=False)["input_ids"]
    rows = []
    for start, end, predicted in windows(len(ids), longest, stride):
        targets = [ids[place + 1] if predicted <= place + 1 < end else NO_TARGET for place in range(start, end)]
        rows.append({"input_ids": ids[start:end], "attention_mask": [1] * (end - start), "targets": targets})
    return rows


def _mark_kept(rows: list[Row], most: int) -> None:
    """``kept`` marks at most ``most`` predicted positions, evenly spread over all windows."""
    total = sum(target != NO_TARGET for row in rows for target in row["targets"])
    every = max(1, math.ceil(total / most))
    number = 0
    for row in rows:
        marks = []
        for target in row["targets"]:
            marks.append(int(target != NO_TARGET and number % every == 0))
            number += target != NO_TARGET
        row["kept"] = marks
