"""Sentences as numbers: words of a vocabulary, or tokens of any tokenizer with markers around the entities.

Shapes: N sentences, B of a batch, T tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compresskit.errors import DataError
from compresskit.tasks.relation_extraction.instances import Instance, Span

MARKERS = ("[E1]", "[/E1]", "[E2]", "[/E2]")
VOCABULARY_FILE = "words.json"


@dataclass(frozen=True)
class Encoded:
    """Numbers of one sentence; spans [first, after last) in them."""

    ids: tuple[int, ...]
    head: Span
    tail: Span


@dataclass(frozen=True)
class Vocabulary:
    """Words by number: 0 is padding, 1 any other word. Upper and lower case are one, digits are 0."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, instances: Iterable[Instance], least: int = 2, most: int = 200_000) -> Vocabulary:
        """The words that occur ``least`` times, frequent ones first."""
        counts = Counter(_form(token) for item in instances for token in item.tokens)
        kept = [word for word, count in counts.most_common(most) if count >= least]
        return cls(("", "<unknown>", *kept))

    def tokenizer(self) -> Any:
        """A Hugging Face tokenizer that gives the same numbers, to be saved beside the model."""
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        padding, unknown = "<padding>", self.words[1]
        numbers = {**{word: number for word, number in self.numbers().items() if number}, padding: 0}
        made = Tokenizer(models.WordLevel(numbers, unk_token=unknown))
        made.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r"\d"), "0")])
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=padding, unk_token=unknown)

    @classmethod
    def of_tokenizer(cls, tokenizer: Any) -> Vocabulary:
        """The words of a tokenizer that ``tokenizer`` made.

        Raises:
            DataError: CK-D063, its numbers have gaps.
        """
        words = {number: word for word, number in tokenizer.get_vocab().items()}
        if sorted(words) != list(range(len(words))) or len(words) < 2:
            raise DataError("CK-D063", "no list of words", why="the tokenizer's numbers have gaps")
        return cls(("", *(words[number] for number in range(1, len(words)))))

    def numbers(self) -> dict[str, int]:
        """Word -> number."""
        return {word: number for number, word in enumerate(self.words)}

    def encode(self, instances: Sequence[Instance], longest: int = 128) -> list[Encoded]:
        """Sentences cut to ``longest`` words around their entities."""
        known = self.numbers()
        found = []
        for item in instances:
            start, end = window(item.head, item.tail, len(item.tokens), longest)
            ids = tuple(known.get(_form(token), 1) for token in item.tokens[start:end])
            found.append(Encoded(ids, _moved(item.head, start, end), _moved(item.tail, start, end)))
        return found

    def save(self, folder: Path) -> None:
        """Write ``words.json``."""
        (folder / VOCABULARY_FILE).write_text(json.dumps(self.words, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Read ``words.json``.

        Raises:
            DataError: CK-D063, it is missing or no list of words.
        """
        path = folder / VOCABULARY_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise DataError("CK-D063", "no list of words", where=str(path), why=str(error)) from error
        if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
            raise DataError("CK-D063", "no list of words", where=str(path))
        return cls(tuple(found))


def window(head: Span, tail: Span, length: int, longest: int) -> Span:
    """Which words are kept of a sentence: all, or ``longest`` around the two entities, as far as they fit."""
    if length <= longest:
        return 0, length
    first, last = min(head[0], tail[0]), max(head[1], tail[1])
    start = max(0, min(first - max(0, longest - (last - first)) // 2, length - longest))
    return start, start + longest


def _moved(span: Span, start: int, end: int) -> Span:
    """``span`` in the kept words; an entity that was cut off is put at the border."""
    size = end - start
    first = min(max(span[0] - start, 0), size - 1)
    return first, min(max(span[1] - start, first + 1), size)


def _form(word: str) -> str:
    return "".join("0" if letter.isdigit() else letter for letter in word.lower())


def add_markers(tokenizer: Any, model: Any = None) -> None:
    """Make the four markers tokens of their own, and let the encoder's table grow with them."""
    missing = [marker for marker in MARKERS if marker not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
    if model is not None and model.get_input_embeddings().num_embeddings < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer))


def mark(instances: Sequence[Instance], tokenizer: Any, longest: int = 128) -> list[Encoded]:
    """Tokens of any Hugging Face tokenizer, with [E1] … [/E1] around the head and [E2] … [/E2] around the tail.

    ``head`` and ``tail`` begin at their first marker. Long sentences are cut around the entities, in words.
    """
    starts = [tokenizer.convert_tokens_to_ids(marker) for marker in (MARKERS[0], MARKERS[2])]
    found = []
    for item in instances:
        keep = longest
        while True:
            start, end = window(item.head, item.tail, len(item.tokens), keep)
            text = " ".join(_marked_words(item, start, end))
            ids = tokenizer(text, add_special_tokens=True)["input_ids"]
            # Words may be many tokens each: take fewer words until they fit.
            if len(ids) <= longest or keep <= 8:
                break
            keep = max(8, min(keep, end - start) * longest // len(ids))
        ids = ids[:longest]
        places = [ids.index(marker) if marker in ids else 0 for marker in starts]
        found.append(Encoded(tuple(ids), (places[0], places[0] + 1), (places[1], places[1] + 1)))
    return found


def _marked_words(item: Instance, start: int, end: int) -> list[str]:
    words = []
    for place in range(start, end):
        words += [MARKERS[0]] * (place == item.head[0]) + [MARKERS[2]] * (place == item.tail[0])
        words.append(item.tokens[place])
        words += [MARKERS[1]] * (place + 1 == item.head[1]) + [MARKERS[3]] * (place + 1 == item.tail[1])
    return words


def encode_instances(
    instances: Sequence[Instance], tokenizer: Any, longest: int = 128, *, marked: bool
) -> list[Encoded]:
    """Sentences as a model takes them: with markers around the entities, or as words of its own vocabulary."""
    if marked:
        return mark(instances, tokenizer, longest)
    return Vocabulary.of_tokenizer(tokenizer).encode(instances, longest)


def collate_relations(rows: Sequence[Encoded], fill: int = 0) -> dict[str, Tensor]:
    """A padded batch: ``input_ids`` and ``attention_mask`` (B, T), ``head`` and ``tail`` (B, 2)."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), fill, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        mask[number, : len(row.ids)] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "head": torch.tensor([row.head for row in rows]),
        "tail": torch.tensor([row.tail for row in rows]),
    }


def relation_numbers(instances: Sequence[Instance], known: Mapping[str, int], where: str = "") -> Tensor:
    """Numbers of the relations, (N,).

    Raises:
        DataError: CK-D051, a relation that isn't known.
    """
    for item in instances:
        if item.relation not in known:
            raise DataError(
                "CK-D051",
                f"the label {item.relation!r} isn't one of the model's",
                where=where,
                fix=f"known: {', '.join(list(known)[:12])}",
            )
    return torch.tensor([known[item.relation] for item in instances])


def word_vectors(path: str | Path, vocabulary: Vocabulary) -> dict[int, np.ndarray]:
    """Vectors of the vocabulary's words: from text lines ``word v1 v2 …`` or from ``words`` and ``vectors`` in .npz.

    Raises:
        DataError: CK-D064, vectors of several sizes, or a file without them.
    """
    known, path = vocabulary.numbers(), Path(path)
    if not path.is_file():
        raise DataError("CK-D001", "there is no such data file", where=str(path), fix="check the path")
    found: dict[int, np.ndarray] = {}
    for word, vector in _vectors(path):
        if word in known and known[word] not in found:
            found[known[word]] = vector
    if len({len(vector) for vector in found.values()}) != 1:
        raise DataError(
            "CK-D064",
            "no vector of a known word" if not found else "vectors of several sizes",
            where=str(path),
            fix="lines are `word number number …`, all of one length",
        )
    return found


def _vectors(path: Path) -> Iterable[tuple[str, np.ndarray]]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as content:
            if "words" not in content or "vectors" not in content:
                raise DataError("CK-D064", "no arrays `words` and `vectors`", where=str(path))
            yield from zip((str(word) for word in content["words"]), content["vectors"], strict=True)
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            word, *numbers = line.rstrip().split(" ")
            if len(numbers) < 2:  # the line of counts that word2vec writes first
                continue
            try:
                yield word, np.array([float(value) for value in numbers], dtype=np.float32)
            except ValueError as error:
                raise DataError("CK-D064", "not numbers", where=f"{path}, line {number}", why=str(error)) from error
