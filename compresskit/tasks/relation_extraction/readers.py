"""Readers: JSON lines of ours, NYT10 as text and as JSON, and SemEval-2010 Task 8. Each may end in .gz."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compresskit.errors import DataError
from compresskit.tasks.relation_extraction.instances import Instance, find_entity, instance

FORMATS = ("jsonl", "nyt10-text", "nyt10-json", "semeval2010")
_END_OF_SENTENCE = "###END###"
_SEMEVAL_TAGS = re.compile(r"<(/?)(e[12])>")


def read_instances(path: str | Path, form: str | None = None, limit: int | None = None) -> list[Instance]:
    """The sentences of ``path``, the first ``limit`` of them.

    Args:
        form: one of ``FORMATS``; by default it is seen from the first line.

    Raises:
        DataError: CK-D001 no such file, CK-D062 not of that format, CK-D060 and CK-D061 as in ``instances``.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("CK-D001", "there is no such data file", where=str(path), fix="check the path")
    form = form or _guess(path)
    if form not in FORMATS:
        raise DataError("CK-D062", f"there is no format {form!r}", where=str(path), fix=f"use {', '.join(FORMATS)}")
    read = {"jsonl": _jsonl, "nyt10-text": _nyt10_text, "nyt10-json": _nyt10_json, "semeval2010": _semeval}[form]
    found = []
    for item in read(path):
        found.append(item)
        if len(found) == limit:
            break
    if not found:
        raise DataError("CK-D003", "the file holds no sentence", where=str(path), fix="give a file with examples")
    return found


def split_file(folder: Path, name: str) -> Path | None:
    """The file of the part ``name`` (``train``, ``dev``, ``test``) in ``folder``, in any format that is read."""
    found = (folder / f"{name}{suffix}{packed}" for suffix in (".jsonl", ".json", ".txt") for packed in ("", ".gz"))
    return next((path for path in found if path.is_file()), None)


def read_relations(path: str | Path) -> dict[str, int]:
    """``rel2id.json``: numbers of the relations, the one without a relation first.

    Raises:
        DataError: CK-D062, the numbers aren't 0 to C - 1.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("CK-D001", "there is no such data file", where=str(path), fix="check the path")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        numbers = {str(name): int(number) for name, number in found.items()}
    except (json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
        raise DataError("CK-D062", "not a table of relations", where=str(path), why=str(error)) from error
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise DataError(
            "CK-D062", "the numbers of the relations aren't 0, 1, 2 and so on", where=str(path), fix="renumber them"
        )
    return numbers


def _open(path: Path) -> Any:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with _open(path) as lines:
        for number, line in enumerate(lines, 1):
            yield f"{path}, line {number}", line.rstrip("\n")


def _guess(path: Path) -> str:
    first = next((line for _, line in _lines(path) if line.strip()), "")
    if first.startswith("{"):
        return "jsonl" if '"tokens"' in first or '"token"' in first else "nyt10-json"
    if first.startswith("["):
        return "nyt10-json"
    return "nyt10-text" if first.count("\t") >= 5 else "semeval2010"


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError("CK-D062", "not a line of JSON", where=where, why=str(error)) from error
    if not isinstance(found, dict):
        raise DataError("CK-D062", "a line is to hold one JSON object", where=where)
    return found


def _jsonl(path: Path) -> Iterator[Instance]:
    """{"tokens", "h": {"name", "tok": [first, after last]}, "t": …, "relation", "pair"}."""
    for where, line in _lines(path):
        if not line.strip():
            continue
        record = _record(line, where)
        try:
            tokens = [str(token) for token in (record.get("tokens") or record["token"])]
            head, tail = record["h"], record["t"]
            pair = record.get("pair")
            if pair is None:
                pair = f"{head.get('id') or head['name']}###{tail.get('id') or tail['name']}"
            spans = [entity.get("tok") or entity["pos"] for entity in (head, tail)]
            relation = record["relation"]
        except (KeyError, TypeError, AttributeError) as error:
            raise _lacks(where, error) from error
        yield instance(tokens, spans[0], spans[1], relation, pair, where)


def _nyt10_json(path: Path) -> Iterator[Instance]:
    """Lines, or one list, of {"sentence" or "text", "head": {"word", "id"}, "tail", "relation"} (thunlp); or OpenNRE's
    {"text", "h": {"name", "id", "pos": characters}, "t", "relation"}."""
    with _open(path) as file:
        listed = file.read(1) == "["
    if listed:
        with _open(path) as file:
            rows = [(f"{path}, item {number}", record) for number, record in enumerate(json.load(file), 1)]
    else:
        rows = [(where, _record(line, where)) for where, line in _lines(path) if line.strip()]
    for where, record in rows:
        try:
            text = record.get("sentence") or record["text"]
            entities = [record.get(long) or record[short] for long, short in (("head", "h"), ("tail", "t"))]
            names = [entity.get("word") or entity["name"] for entity in entities]
            keys = [entity.get("id") or name for entity, name in zip(entities, names, strict=True)]
            relation = record["relation"]
        except (KeyError, TypeError, AttributeError) as error:
            raise _lacks(where, error) from error
        tokens = text.replace(_END_OF_SENTENCE, "").split()
        spans = [
            _by_characters(text, entity["pos"], where) if "pos" in entity else find_entity(tokens, name, where)
            for entity, name in zip(entities, names, strict=True)
        ]
        yield instance(tokens, spans[0], spans[1], relation, "###".join(keys), where)


def _by_characters(text: str, place: Any, where: str) -> tuple[int, int]:
    """The span of tokens that characters [first, after last) of ``text`` touch."""
    found, start = [], 0
    for number, token in enumerate(text.split()):
        start = text.index(token, start)
        if start < place[1] and start + len(token) > place[0]:
            found.append(number)
        start += len(token)
    if not found:
        raise DataError("CK-D060", f"no token is at the characters {place!r:.40}", where=where)
    return found[0], found[-1] + 1


def _nyt10_text(path: Path) -> Iterator[Instance]:
    """Tab-separated: head id, tail id, head name, tail name, relation, sentence that ends in ###END###."""
    for where, line in _lines(path):
        if not line.strip():
            continue
        parts = line.split("\t")
        if len(parts) < 6:
            raise DataError("CK-D062", f"a line has {len(parts)} columns, not 6", where=where)
        tokens = parts[5].replace(_END_OF_SENTENCE, "").split()
        spans = [find_entity(tokens, name, where) for name in parts[2:4]]
        yield instance(tokens, spans[0], spans[1], parts[4], "###".join(parts[:2]), where)


def _semeval(path: Path) -> Iterator[Instance]:
    """``1<tab>"A <e1>word</e1> … <e2>word</e2>."``, the relation in the next line, then comments and an empty line."""
    lines = [(where, line.strip()) for where, line in _lines(path)]
    for index, (where, line) in enumerate(lines):
        if "<e1>" not in line:
            continue
        relation = lines[index + 1][1] if index + 1 < len(lines) else ""
        if not relation:
            raise DataError("CK-D062", "a sentence without a relation below", where=where)
        tokens, spans = _marked(line.split("\t", 1)[-1].strip().strip('"'))
        if set(spans) != {"e1", "e2"}:
            raise DataError("CK-D062", "a sentence needs one <e1>…</e1> and one <e2>…</e2>", where=where)
        names = [" ".join(tokens[start:end]) for start, end in (spans["e1"], spans["e2"])]
        yield instance(tokens, spans["e1"], spans["e2"], relation, "###".join(names), where)


def _marked(sentence: str) -> tuple[list[str], dict[str, tuple[int, int]]]:
    """Tokens, punctuation apart, and where <e1> and <e2> were."""
    tokens: list[str] = []
    begins: dict[str, int] = {}
    spans: dict[str, tuple[int, int]] = {}
    place = 0
    for tag in [*_SEMEVAL_TAGS.finditer(sentence), None]:
        piece = sentence[place : tag.start()] if tag else sentence[place:]
        tokens += re.findall(r"\w+(?:[-']\w+)*|[^\w\s]", piece)
        if tag is None:
            break
        place = tag.end()
        if tag[1]:
            spans[tag[2]] = (begins.pop(tag[2], len(tokens)), len(tokens))
        else:
            begins[tag[2]] = len(tokens)
    return tokens, spans


def _lacks(where: str, error: Exception) -> DataError:
    return DataError(
        "CK-D062",
        "a record lacks a field, or has one of another kind",
        where=where,
        why=str(error),
        fix="tokens, h, t, relation, pair",
    )
