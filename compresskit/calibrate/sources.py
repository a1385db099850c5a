"""Texts from the built-in mixture or from a file of the user's: .txt, .tsv, .csv, .jsonl, also with .gz behind.

Rows are read in one pass and sampled evenly, so that a large file costs no memory and a sorted one gives no bias.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from compresskit.calibrate.text import Split, builtin_texts
from compresskit.errors import DataError

BUILTIN = "builtin"
USUAL_COLUMNS = ("text", "sentence", "sentence1", "content", "document", "question", "premise", "review")
FORMATS = (".txt", ".tsv", ".csv", ".jsonl")

# csv's own limit of 131,072 characters a field is too small for documents.
_LONGEST_FIELD = 16 * 2**20

Records = Iterator[tuple[str, dict[str, Any] | str]]


def load_texts(
    data: str | Path,
    samples: int | None = None,
    *,
    seed: int = 0,
    column: str | None = None,
    split: Split = "calibration",
    vocabulary: Sequence[str] = (),
    warn: Callable[[str], None] | None = None,
) -> list[str]:
    """``samples`` texts from ``data``: the word ``builtin``, or a file.

    Args:
        samples: None takes all of a file, and 256 built-in texts.
        seed: which rows of a longer file are taken, and which built-in texts.
        column: the column of a .tsv or .csv, the key of a .jsonl; needed where no usual name is there.
        split: of the built-in texts, ``calibration`` or ``heldout``.
        vocabulary: words of the model's, for the built-in texts; see ``text.vocabulary_words``.
        warn: told about fewer texts than asked for.

    Raises:
        DataError: CK-D001 no such file, CK-D002 a format that isn't read, CK-D003 no text in it, CK-D004 a column
            that isn't there, CK-D005 a row that isn't text; each with its place.
    """
    if samples is not None and samples < 1:
        raise DataError("CK-D003", f"{samples} texts were asked for", fix="ask for at least one")
    if str(data) == BUILTIN:
        return builtin_texts(samples or 256, seed, split=split, vocabulary=vocabulary)
    path = Path(data)
    if not path.is_file():
        raise DataError(
            "CK-D001",
            "there is no such data file",
            where=str(data),
            fix=f"give `{BUILTIN}` or a file: {', '.join(FORMATS)}",
        )
    found, seen = _sample(read_column(path, column), samples, random.Random(seed))
    if not found:
        raise DataError("CK-D003", "the file holds no text", where=str(path), fix="check the file and the column")
    if samples is not None and seen < samples and warn is not None:
        effect = "statistics of a single text fit nothing else" if seen == 1 else "statistics will be noisier"
        warn(f"{path.name} holds {seen} text{'s' if seen > 1 else ''}, {samples} were asked for: {effect}")
    return found


def _sample(texts: Iterator[str], samples: int | None, choice: random.Random) -> tuple[list[str], int]:
    """An even sample in one pass (Vitter 1985, algorithm R), in the order of the file, and the number of texts."""
    kept: list[tuple[int, str]] = []
    seen = 0
    for text in texts:
        if samples is None or len(kept) < samples:
            kept.append((seen, text))
        else:
            place = choice.randrange(seen + 1)
            if place < samples:
                kept[place] = (seen, text)
        seen += 1
    return [text for _, text in sorted(kept)], seen


def read_column(path: Path, column: str | None = None) -> Iterator[str]:
    """The non-empty texts of one column of a file, in its order."""
    chosen: dict[tuple[str, ...], str] = {}
    for place, record in read_records(path):
        if isinstance(record, str):
            if column is not None:
                raise DataError("CK-D004", f"the file has no column {column!r}", where=str(path), fix="name none")
            value: Any = record
        else:
            names = tuple(record)
            if names not in chosen:
                chosen[names] = choose_column(names, column, path)
            value = record[chosen[names]]
        text = require_text(value, f"{path}, {place}")
        if text:
            yield text


def require_text(value: Any, where: str) -> str:
    """``value`` without blanks at its ends.

    Raises:
        DataError: CK-D005, if it isn't text.
    """
    if not isinstance(value, str):
        shown = json.dumps(value, default=repr)[:40]
        raise DataError(
            "CK-D005",
            f"a row holds {shown} where text should be",
            where=where,
            fix="choose another column, or mend the row",
        )
    return value.strip()


def read_records(path: Path) -> Records:
    """The rows of a data file, each with its place: values by column, or a plain text.

    Raises:
        DataError: CK-D001 no such file, CK-D002 a format that isn't read, or damage.
    """
    if not path.is_file():
        raise DataError("CK-D001", "there is no such data file", where=str(path), fix=f"read are {', '.join(FORMATS)}")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if packed else suffixes)[-1:]
    if not kind or kind[0] not in FORMATS:
        raise DataError(
            "CK-D002",
            f"files of the kind {''.join(path.suffixes) or '(no suffix)'} aren't read",
            where=str(path),
            fix=f"convert it to one of {', '.join(FORMATS)} (.gz may follow)",
        )
    try:
        with _open(path, packed) as file:
            yield from _READERS[kind[0]](file, path)
    except UnicodeDecodeError as error:
        raise DataError("CK-D002", "the file isn't UTF-8 text", where=str(path), why=str(error)) from error
    except (gzip.BadGzipFile, EOFError, csv.Error) as error:
        raise DataError("CK-D002", "the file is damaged", where=str(path), why=str(error)) from error


def _open(path: Path, packed: bool) -> IO[str]:
    if packed:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _lines(file: IO[str], _path: Path) -> Records:
    for number, line in enumerate(file, 1):
        yield f"line {number}", line


def _table(file: IO[str], *, tabs: bool) -> Records:
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file)
    header = next(reader, None)
    if header is None:
        return
    for row in reader:
        if row:
            # A short row has no such field: its value is None, and refused with its place by whoever needs it.
            yield f"line {reader.line_num}", dict(itertools.zip_longest(header, row[: len(header)]))


def _objects(file: IO[str], path: Path) -> Records:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError("CK-D005", "the line isn't JSON", where=f"{path}, line {number}", why=str(error)) from error
        if not isinstance(value, (str, dict)):
            raise DataError("CK-D005", "the line is no JSON object", where=f"{path}, line {number}")
        yield f"line {number}", value


def _tabs(file: IO[str], _path: Path) -> Records:
    return _table(file, tabs=True)


def _commas(file: IO[str], _path: Path) -> Records:
    return _table(file, tabs=False)


_READERS: dict[str, Callable[[IO[str], Path], Records]] = {
    ".txt": _lines,
    ".tsv": _tabs,
    ".csv": _commas,
    ".jsonl": _objects,
}


def choose_column(columns: Sequence[str], wanted: str | None, path: Path) -> str:
    """The column that holds the text.

    Raises:
        DataError: CK-D004, with the columns that are there.
    """
    if wanted is not None:
        if wanted in columns:
            return wanted
        close = difflib.get_close_matches(wanted, columns, n=1)
        raise DataError(
            "CK-D004",
            f"there is no column {wanted!r}",
            where=str(path),
            fix=(f"did you mean {close[0]!r}? " if close else "") + f"columns: {', '.join(columns)}",
        )
    usual = next((name for name in USUAL_COLUMNS if name in columns), None)
    if usual is None and len(columns) == 1:
        usual = columns[0]
    if usual is None:
        raise DataError(
            "CK-D004",
            "it isn't plain which column holds the text",
            where=str(path),
            fix=f"name one of the columns: {', '.join(columns)}",
        )
    return usual
