"""Labels for words, such as names or chunks: F1 of whole spans, exact in place and type.

Examples come as CoNLL text (word first, tag last, sentences parted by empty lines) or as objects with a list of words
(``tokens`` or ``words``) and one of tags (``tags``, ``ner_tags`` or ``labels``). A word's first piece speaks for it.

Shapes: N sentences, T tokens, C tags, R resamples.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from compresskit.errors import DataError
from compresskit.tasks.data import HUB, records
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

WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "labels")
OUTSIDE = "O"
_LOGITS = "compresskit.numerics.reductions:class_logits"

Sentence = tuple[list[str], list[str]]
Span = tuple[str, int, int]


def read_tagged(path: str | Path, samples: int | None = None) -> list[Sentence]:
    """Words and tags of the first ``samples`` sentences.

    Raises:
        DataError: CK-D001 no file, CK-D002 damage, CK-D003 no sentence, CK-D004 a missing column, CK-D052 words and
            tags that don't match, or a tag that isn't BIO.
    """
    found: list[Sentence] = []
    table = (
        not str(path).startswith(HUB)
        and Path(path).is_file()
        and not str(path).endswith((".parquet", ".jsonl", ".jsonl.gz"))
    )
    for where, words, tags in _conll(Path(path)) if table else _objects(path):
        if len(words) != len(tags) or not words:
            raise DataError("CK-D052", f"{len(words)} words have {len(tags)} tags", where=where, fix="mend the row")
        for tag in tags:
            if tag != OUTSIDE and not (tag[:2] in ("B-", "I-") and len(tag) > 2):
                raise DataError(
                    "CK-D052", f"the tag {tag!r} isn't O, B-TYPE or I-TYPE", where=where, fix="mend the row"
                )
        found.append((words, tags))
        if len(found) == samples:
            break
    if not found:
        raise DataError("CK-D003", "the file holds no sentence", where=str(path), fix="give a file with examples")
    return found


def _conll(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    words: list[str] = []
    tags: list[str] = []
    first = 1
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                columns = line.split()
                if not columns or columns[0] == "-DOCSTART-":
                    if words:
                        yield f"{path}, line {first}", words, tags
                    words, tags, first = [], [], number + 1
                    continue
                if len(columns) < 2:
                    raise DataError(
                        "CK-D052", "the line has no tag", where=f"{path}, line {number}", fix="mend the line"
                    )
                words.append(columns[0])
                tags.append(columns[-1])
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise DataError("CK-D002", "the file is damaged, or isn't text", where=str(path), why=str(error)) from error
    if words:
        yield f"{path}, line {first}", words, tags


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig")


def _objects(path: str | Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for place, record in records(path):
        where = f"{path}, {place}"
        row = record if isinstance(record, dict) else {}
        words, tags = (next((row[name] for name in names if name in row), None) for names in (WORDS, TAGS))
        if not isinstance(words, list) or not isinstance(tags, list):
            raise DataError(
                "CK-D004",
                f"token classification needs a list {' or '.join(WORDS)} and a list {', '.join(TAGS)}",
                where=where,
                fix=f"there are: {', '.join(row) or 'none'}",
            )
        yield where, [str(word) for word in words], [str(tag) for tag in tags]


def spans(tags: Sequence[str]) -> set[Span]:
    """(type, first word, one past the last) of each span, as CoNLL's evaluation counts them.

    An I- begins a span where nothing of its type went before.
    """
    found, start, kind = set(), 0, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        goes_on = tag[:2] == "I-" and tag[2:] == kind
        if goes_on:
            continue
        if kind:
            found.add((kind, start, place))
        start, kind = place, "" if tag == OUTSIDE else tag[2:]
    return found


class TokenClassification(Task):
    """Micro F1 of spans (x 100), precision and recall beside it.

    ``statistics`` are spans that are right, predicted and there, for each sentence.
    """

    name = "token_classification"
    metric = "span_f1"

    def prepare(self, data: str | Path, tokenizer: Any, facts: Facts, options: Options) -> Workload:
        if facts.kind != "tagging":
            raise self._refuse_model(facts, "a head that labels tokens", "evaluate a token classifier, or another task")
        sentences = read_tagged(data, options.samples)
        _refuse_labels(sentences, facts, str(data))
        length = options.max_length or min(facts.longest, 512)
        rows, first_pieces = encode_words([words for words, _ in sentences], tokenizer, length)
        refuse_foreign(rows, facts)
        batches, order = padded(rows, options.batch_size, fill_of(tokenizer))
        reference = {"tags": [tags for _, tags in sentences], "pieces": first_pieces, "classes": facts.classes}
        return Workload(self.name, batches, _LOGITS, order, reference, len(sentences), str(data))

    def score(self, workload: Workload, outputs: Sequence[Arrays]) -> Score:
        classes, pieces, tags = (workload.reference[name] for name in ("classes", "pieces", "tags"))
        rows = [row for batch in workload.collected(outputs, "logits") for row in batch]
        if any(row.ndim != 2 or row.shape[-1] != len(classes) for row in rows):
            raise DataError(
                "CK-D053", f"the outputs are no scores of {len(classes)} tags for each token", fix="evaluate a tagger"
            )
        logits = dict(zip(workload.order.tolist(), rows, strict=True))
        counts, cut, kept = [], 0, []
        for number, gold in enumerate(tags):
            chosen = logits[number][pieces[number]]
            kept.append(chosen)
            cut += len(gold) - len(chosen)
            # Words that were cut off get no label: their spans are missed.
            predicted = [classes[index] for index in chosen.argmax(-1)] + [OUTSIDE] * (len(gold) - len(chosen))
            left, right = spans(gold), spans(predicted)
            counts.append((len(left & right), len(right), len(left)))
        statistics = np.array(counts, dtype=np.float64)
        words = np.concatenate(kept)
        right, predicted_spans, there = statistics.sum(0)
        return Score(
            self.metric,
            float(_f1(statistics.sum(0))),
            workload.rows,
            {
                "precision": 100 * right / max(predicted_spans, 1),
                "recall": 100 * right / max(there, 1),
                "spans_count": int(there),
                "words_cut_count": cut,
            },
            task=self.name,
            scores=_f1(statistics),
            statistics=statistics,
            columns=("right", "predicted", "there"),
            predictions=words.argmax(-1),
            classes=classes,
            logits=words,
        )

    def values(self, statistics: np.ndarray, picks: np.ndarray) -> np.ndarray:
        """F1 of each resample of sentences."""
        return _f1(np.stack([statistics[:, column][picks].sum(1) for column in range(3)], axis=-1))


def _f1(counts: np.ndarray) -> np.ndarray:
    """100 * 2 right / (predicted + there) over the last axis; 100, where there is no span and none was predicted."""
    total = counts[..., 1] + counts[..., 2]
    found: np.ndarray = np.where(total > 0, 200 * counts[..., 0] / np.maximum(total, 1), 100.0)
    return found


def _refuse_labels(sentences: Sequence[Sentence], facts: Facts, where: str) -> None:
    """Every type must be known to the model; a model may lack I- of a type that has no long span."""
    known = {name[2:] for name in facts.classes if name[:2] in ("B-", "I-")}
    unknown = {tag[2:] for _, tags in sentences for tag in tags if tag != OUTSIDE} - known
    if unknown:
        raise DataError(
            "CK-D051",
            f"spans of the type {sorted(unknown)[0]!r} aren't among the model's labels",
            where=where,
            fix=f"known: {', '.join(facts.classes[:12])}",
        )


def encode_words(sentences: Sequence[list[str]], tokenizer: Any, max_length: int) -> tuple[list[Row], list[np.ndarray]]:
    """Tokens of each sentence, and the position of the first piece of each of its words that was not cut off."""
    require_tokenizer(tokenizer)
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            "CK-D008",
            "this tokenizer can't say which word a token belongs to",
            fix="use a fast tokenizer (tokenizer.json)",
        )
    encoded = tokenizer(
        list(sentences), is_split_into_words=True, truncation=True, max_length=max_length, return_attention_mask=True
    )
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded]
    rows, pieces = [], []
    for number in range(len(sentences)):
        rows.append({name: list(encoded[name][number]) for name in names})
        places: dict[int, int] = {}
        for place, word in enumerate(encoded.word_ids(number)):
            if word is not None:
                places.setdefault(word, place)
        # A word that gives no token (a lone control character) takes the label of the token before.
        last, chosen = 0, []
        for word in range(max(places, default=-1) + 1):
            last = places.get(word, last)
            chosen.append(last)
        pieces.append(np.array(chosen, dtype=np.int64))
    return rows, pieces
