"""What all tasks share: batches of tokens in numpy, so that any engine can run them, and the frame of a task.

Shapes: B texts of a batch, T tokens, N examples, K sums, R resamples.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from compresskit.errors import DataError
from compresskit.tasks.data import exists
from compresskit.tasks.scores import Score, Unit

Arrays = Mapping[str, np.ndarray]
Row = dict[str, list[int]]

LONGEST_TEXT = 256
"""Tokens that a text is cut to, unless the model takes fewer."""

_PADDED_FROM_SECOND = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")


@dataclass(frozen=True)
class Facts:
    """What a task has to know of the model besides its outputs.

    Args:
        kind: embedding, classification, tagging, relations, language, or other.
        labels: name or number of a class -> its number.
        longest: tokens that it takes.
        pooling: how tokens become a sentence vector.
        vocabulary: rows of the word table.
    """

    architecture: str = ""
    kind: str = "embedding"
    labels: Mapping[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    longest: int = 512
    pooling: str = "mean"
    vocabulary: int | None = None
    max_seq_length: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], sentence_transformer: Any = None, architecture: str | None = None) -> Facts:
        """From ``config.json`` as a mapping, and the files of a sentence-transformers model."""
        name = architecture or next(iter(config.get("architectures") or []), "")
        names = {int(number): str(label) for number, label in (config.get("id2label") or {}).items()}
        names |= {int(number): str(label) for label, number in (config.get("label2id") or {}).items()}
        numbers = {str(number): number for number in names}
        return cls(
            architecture=name,
            kind=_kind(name, bool(config.get("is_encoder_decoder"))),
            labels={**numbers, **{label: number for number, label in names.items()}},
            classes=tuple(names[number] for number in sorted(names)),
            longest=_longest(config),
            pooling=getattr(sentence_transformer, "pooling", None) or "mean",
            vocabulary=config.get("vocab_size"),
            max_seq_length=getattr(sentence_transformer, "max_seq_length", None),
        )

    @property
    def longest_text(self) -> int:
        """Tokens that a sentence is cut to."""
        return min(self.longest, self.max_seq_length or LONGEST_TEXT)


def _kind(architecture: str, double: bool) -> str:
    if architecture.endswith("ForTokenClassification"):
        return "tagging"
    if architecture.endswith("ForSequenceClassification"):
        return "classification"
    if architecture.endswith("ForRelationExtraction"):
        return "relations"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")) and not double:
        return "language"
    if double and not architecture.endswith("EncoderModel"):
        return "other"
    return "embedding" if not architecture or architecture.endswith(("Model", "Encoder")) else "other"


def _longest(config: Mapping[str, Any]) -> int:
    if config.get("model_type") == "t5":
        return 10**6  # positions are relative
    stated = int(config.get("max_position_embeddings") or config.get("n_positions") or 10**6)
    if config.get("model_type") in _PADDED_FROM_SECOND:
        # Positions are counted from padding_idx + 1 on; the rows before are never read.
        return stated - int(config.get("pad_token_id") or 0) - 1
    return stated


@dataclass(frozen=True)
class Options:
    """How a task is to be done.

    Args:
        samples: use the first so many examples.
        train: file that a probe is trained on; ``train_samples`` of it.
        max_length: tokens of a text, or of a window of a language model.
        stride: tokens from one window of a language model to the next.
    """

    samples: int | None = None
    train: str | Path | None = None
    train_samples: int | None = None
    max_length: int | None = None
    stride: int | None = None
    batch_size: int = 32


@dataclass(frozen=True)
class Workload:
    """Batches to run and what the outputs are held against.

    Args:
        batches: arrays by name, (B, T) int64: ``input_ids``, ``attention_mask``, perhaps ``token_type_ids``; further
            ones are for ``reduce``, and no model takes them.
        reduce: ``module:function`` that makes of a batch and the model's outputs what is scored.
        order: the example of each row, over all batches.
        reference: the right answers.
        data_hash: sha256 over batches.
    """

    task: str
    batches: list[dict[str, np.ndarray]]
    reduce: str
    order: np.ndarray
    reference: Mapping[str, Any]
    rows: int
    data: str = ""

    @property
    def data_hash(self) -> str:
        found = hashlib.sha256()
        for batch in self.batches:
            for name in sorted(batch):
                found.update(f"{name}{batch[name].shape}".encode() + np.ascontiguousarray(batch[name]).tobytes())
        return found.hexdigest()

    def tokens(self) -> list[int]:
        """Attended tokens of each batch."""
        return [int(batch["attention_mask"].sum()) for batch in self.batches]

    def collected(self, outputs: Sequence[Arrays], name: str) -> list[np.ndarray]:
        """The array ``name`` of each batch after ``reduce``, which is done here if it wasn't yet.

        Raises:
            DataError: CK-D053, the outputs aren't those of this workload.
        """
        if len(outputs) != len(self.batches):
            raise _misfit(self.task, f"{len(outputs)} outputs for {len(self.batches)} batches")
        module, _, function = self.reduce.partition(":")
        reduce = getattr(import_module(module), function)
        found = []
        for batch, given in zip(self.batches, outputs, strict=True):
            try:
                array = given[name] if name in given else reduce(batch, given)[name]
            except KeyError as error:
                raise _misfit(self.task, str(error.args[0])) from error
            found.append(np.asarray(array))
        return found

    def rows_of(self, outputs: Sequence[Arrays], name: str) -> np.ndarray:
        """The array ``name`` of all examples in their order, (N, …)."""
        stacked = np.concatenate(self.collected(outputs, name))
        if len(stacked) != len(self.order):
            raise _misfit(self.task, f"{len(stacked)} rows for {len(self.order)} examples")
        if not np.isfinite(stacked).all():
            raise _misfit(self.task, "some outputs are not finite")
        found = np.empty_like(stacked)
        found[self.order] = stacked
        return found


def _misfit(task: str, why: str) -> DataError:
    return DataError(
        "CK-D053", f"the outputs can't be scored on the task {task!r}", why=why, fix="export the model anew"
    )


class Task(ABC):
    """One kind of quality. ``prepare`` and ``score`` see arrays only, whatever ran the model between them."""

    name: ClassVar[str]
    metric: ClassVar[str]
    unit: ClassVar[Unit] = "points"
    higher_is_better: ClassVar[bool] = True

    def look_for(self, data: str | Path) -> None:
        """Whether the data are there, without reading them: to be asked before hours of work.

        Raises:
            DataError: CK-D001.
        """
        if not exists(data):
            raise DataError("CK-D001", "there is no such data file", where=str(data), fix="check the path")

    @abstractmethod
    def prepare(self, data: str | Path, tokenizer: Any, facts: Facts, options: Options) -> Workload:
        """Read the examples and turn them into batches.

        Raises:
            DataError: the file doesn't fit; CK-D021, if the model doesn't.
        """

    @abstractmethod
    def score(self, workload: Workload, outputs: Sequence[Arrays]) -> Score:
        """Score the outputs of one model."""

    @abstractmethod
    def values(self, statistics: np.ndarray, picks: np.ndarray) -> np.ndarray:
        """The metric on resampled examples, (R,), from statistics (N, K) and picks (R, N)."""

    def _refuse_model(self, facts: Facts, needs: str, fix: str) -> DataError:
        return DataError(
            "CK-D021",
            f"the task `{self.name}` needs {needs}, and {facts.architecture or 'this model'} has none",
            fix=fix,
        )


def rows_of_texts(texts: Sequence[str], tokenizer: Any, facts: Facts, max_length: int) -> list[Row]:
    """Tokens of each text, unpadded.

    Raises:
        DataError: CK-D008 no tokenizer, CK-D005 a text without tokens, CK-D006 a token outside the vocabulary.
    """
    require_tokenizer(tokenizer)
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, return_attention_mask=True)
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded]
    rows = [{name: list(encoded[name][index]) for name in names} for index in range(len(texts))]
    for text, row in zip(texts, rows, strict=True):
        if not sum(row["attention_mask"]):
            raise DataError("CK-D005", f"the text {text[:40]!r} gives no token", fix="remove empty rows")
    refuse_foreign(rows, facts)
    return rows


def require_tokenizer(tokenizer: Any) -> None:
    """Raise CK-D008 without one."""
    if tokenizer is None:
        raise DataError(
            "CK-D008",
            "there is no tokenizer to turn text into tokens",
            why="the model's folder holds none",
            fix="put the tokenizer's files beside the model",
        )


def refuse_foreign(rows: Sequence[Row], facts: Facts) -> None:
    """Raise CK-D006 for a token that the model has no row for."""
    largest = max(max(row["input_ids"]) for row in rows)
    if facts.vocabulary is not None and largest >= facts.vocabulary:
        raise DataError(
            "CK-D006",
            f"token {largest} lies outside the model's vocabulary of {facts.vocabulary}",
            why="the tokenizer belongs to another model, or tokens were added to it",
            fix="use the tokenizer that the model was trained with",
        )


def padded(
    rows: Sequence[Row], batch_size: int, fill: Mapping[str, int]
) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """Batches of rows of like length, (B, longest) int64, and which row each one is.

    Args:
        fill: what short rows are filled with on the right, by name; 0 for others.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    batches = []
    for start in range(0, len(order), batch_size):
        chosen = [rows[index] for index in order[start : start + batch_size]]
        longest = max(len(row["input_ids"]) for row in chosen)
        batch = {}
        for name in chosen[0]:
            array = np.full((len(chosen), longest), fill.get(name, 0), dtype=np.int64)
            for place, row in enumerate(chosen):
                array[place, : len(row[name])] = row[name]
            batch[name] = array
        batches.append(batch)
    return batches, np.array(order)


def fill_of(tokenizer: Any) -> dict[str, int]:
    """The padding token; any will do under the mask, so tokenizers without one get 0."""
    pad = getattr(tokenizer, "pad_token_id", None)
    return {"input_ids": 0 if pad is None else int(pad)}
