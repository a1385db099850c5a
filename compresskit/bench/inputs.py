"""What the models are run on: real text, the same bytes for every arm, its lengths recorded.

A row of a fixed length holds that many tokens of text and no padding; ``offline`` takes texts as long as they are and
pads them in batches, as one would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compresskit.bench.engines.base import digest
from compresskit.bench.record import Cell, Scenario
from compresskit.bench.subjects import Subject
from compresskit.calibrate.text import builtin_texts
from compresskit.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIFFERENT_INPUTS = 8
OFFLINE_TEXTS = 64
_DECODER_TOKENS = 8
_DEFAULT_VOCABULARY = 256
_FIRST_ID = 5
_CHARACTERS_PER_TOKEN = 12
_WITH_ENTITIES = "ForRelationExtraction"
_SEQUENCE_TO_SEQUENCE = ("ForConditionalGeneration", "T5Model", "BartModel")


@dataclass(frozen=True)
class Work:
    """A cell with its inputs."""

    cell: Cell
    batches: list[dict[str, np.ndarray]]

    @property
    def tokens(self) -> list[int]:
        """Non-padding tokens of each input."""
        return [int(batch["attention_mask"].sum()) for batch in self.batches]


def cell_id(scenario: str, batch: int, length: int, threads: int) -> str:
    """Such as ``encode/b1/t128/th1``."""
    return f"{scenario}/b{batch}/t{length}/th{threads}"


def make_work(
    subject: Subject,
    tokenizer: PreTrainedTokenizerBase | None,
    scenario: Scenario,
    *,
    batch: int,
    length: int,
    threads: int,
    new_tokens: int,
    seed: int,
) -> Work:
    """The inputs of one cell, for all arms.

    Args:
        subject: the baseline, whose vocabulary and positions the inputs fit.
        tokenizer: None makes random token ids, and the record says so.

    Raises:
        UsageError: CK-B014, longer than the model takes.
    """
    _check_length(subject, tokenizer, length + (new_tokens if scenario == "decode" else 0))
    vocabulary = int(_text_config(subject.config).get("vocab_size", _DEFAULT_VOCABULARY))
    if tokenizer is None:
        batches, text = _random(vocabulary, batch, length, seed), "random token ids, for want of a tokenizer"
    elif scenario == "offline":
        batches, text = _natural(tokenizer, batch, length, seed), "built-in texts, as long as they are"
    else:
        batches, text = _full(tokenizer, batch, length, seed), "built-in texts, joined and cut"
    largest = max(int(found["input_ids"].max()) for found in batches)
    if largest >= vocabulary and subject.config:
        batches, text = (
            _random(vocabulary, batch, length, seed),
            "random token ids: the tokenizer has more than the model",
        )
    if subject.architecture.endswith(_SEQUENCE_TO_SEQUENCE):
        for found in batches:
            found["decoder_input_ids"] = found["input_ids"][:, :_DECODER_TOKENS].copy()
    if subject.architecture.endswith(_WITH_ENTITIES):
        for found in batches:
            last = found["attention_mask"].sum(1) - 1
            # The words in the middle and at the end: where entities are doesn't change what is computed.
            found |= {name: np.stack([place, place + 1], 1) for name, place in (("head", last // 2), ("tail", last))}
    cell = Cell(
        id=cell_id(scenario, batch, length, threads),
        scenario=scenario,
        batch=batch,
        length=length,
        threads=threads,
        inputs=len(batches),
        lengths=[int(row) for found in batches for row in found["attention_mask"].sum(1)],
        input_hash=hash_of(batches),
        text=text,
        new_tokens={"decode": new_tokens, "prefill": 1}.get(scenario),
    )
    return Work(cell, batches)


def with_threads(work: Work, threads: int) -> Work:
    """The same inputs for another number of threads."""
    cell = work.cell
    name = cell_id(cell.scenario, cell.batch, cell.length, threads)
    return replace(work, cell=cell.model_copy(update={"threads": threads, "id": name}))


def hash_of(batches: Sequence[dict[str, np.ndarray]]) -> str:
    """sha256 over all arrays of all batches, as the workers compute it."""
    return digest({f"{number}.{name}": array for number, batch in enumerate(batches) for name, array in batch.items()})


def load_tokenizer(subjects: Sequence[Subject]) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the first subject that has one."""
    from compresskit.checkpoint.strict_load import load_tokenizer as load

    for folder in dict.fromkeys(subject.tokenizer for subject in subjects):
        if folder is not None and any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
            return load(folder)
    return None


def _full(tokenizer: PreTrainedTokenizerBase, batch: int, length: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Rows of exactly ``length`` tokens."""
    pool = builtin_texts(OFFLINE_TEXTS, seed, split="heldout")
    rows = []
    for number in range(batch * DIFFERENT_INPUTS):
        text, position = "", number * 7
        while len(text) < _CHARACTERS_PER_TOKEN * length:
            text += pool[position % len(pool)] + " "
            position += 1
        rows.append(text)
    return [
        _arrays(tokenizer(rows[start : start + batch], truncation=True, max_length=length, return_tensors="np"))
        for start in range(0, len(rows), batch)
    ]


def _natural(tokenizer: PreTrainedTokenizerBase, batch: int, length: int, seed: int) -> list[dict[str, np.ndarray]]:
    texts = builtin_texts(max(OFFLINE_TEXTS, batch), seed, split="heldout")
    padding = tokenizer.pad_token is not None or batch == 1
    if not padding:
        raise UsageError("CK-B015", "the tokenizer has no padding token, so texts can't share a batch", fix="--batch 1")
    return [
        _arrays(
            tokenizer(
                texts[start : start + batch],
                truncation=True,
                max_length=length,
                padding=batch > 1,
                return_tensors="np",
            )
        )
        for start in range(0, len(texts) - batch + 1, batch)
    ]


def _arrays(encoded: Any) -> dict[str, np.ndarray]:
    found = {name: np.asarray(encoded[name], dtype=np.int64) for name in encoded}
    found.setdefault("attention_mask", np.ones_like(found["input_ids"]))
    return found


def _random(vocabulary: int, batch: int, length: int, seed: int) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    first = min(_FIRST_ID, vocabulary - 1)
    return [
        {
            "input_ids": generator.integers(first, vocabulary, size=(batch, length), dtype=np.int64),
            "attention_mask": np.ones((batch, length), dtype=np.int64),
        }
        for _ in range(DIFFERENT_INPUTS)
    ]


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _check_length(subject: Subject, tokenizer: PreTrainedTokenizerBase | None, length: int) -> None:
    config = _text_config(subject.config)
    stated = config.get("max_position_embeddings") or config.get("n_positions")
    limits = [int(stated)] if stated and config.get("model_type") != "t5" else []
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        limits = [limit - int(config.get("pad_token_id") or 0) - 1 for limit in limits]
    if limits and length > min(limits):
        raise UsageError(
            "CK-B014",
            f"{subject.name} has positions for {min(limits)} tokens, and {length} are asked for",
            fix=f"--length {min(limits)} or less, new tokens included",
        )


def default_length(subject: Subject, wanted: int, new_tokens: int = 0) -> int:
    """``wanted``, or what the model's positions allow."""
    config = _text_config(subject.config)
    stated = config.get("max_position_embeddings") or config.get("n_positions")
    return wanted if not stated else max(1, min(wanted, int(stated) - 2 - new_tokens))


def folder_of(subject: Subject) -> Path:
    """The folder of a subject's files."""
    return subject.path if subject.path.is_dir() else subject.path.parent
