"""The files that a page is made of: records, and summaries of suites with the records that lie beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compresskit.bench.files import read_json_record
from compresskit.bench.record import MOST_BYTES, Record, read
from compresskit.checkpoint.files import check_relative, printable
from compresskit.errors import DataError, UsageError
from compresskit.report.foreign import text
from compresskit.report.suite import FORMAT, Summary

MOST_RECORDS_OF_A_SUITE = 100
MOST_SUMMARY_BYTES = 16 * 2**20
_FOLDER = "records"


@dataclass
class Given:
    """``(name, record)`` of each record in order, each file once; the summaries of suites."""

    records: list[tuple[str, Record]] = field(default_factory=list)
    suites: list[Summary] = field(default_factory=list)


def read_given(paths: Sequence[Path]) -> Given:
    """Everything that ``paths`` name.

    Raises:
        UsageError: CK-B001, no file was given.
        DataError: CK-B010, a file is neither a record nor a suite's summary.
        SecurityError: CK-S003, a summary names a record outside of its folder.
    """
    if not paths:
        raise UsageError("CK-B001", "there is nothing to report on", fix="give a file that `bench run -o` wrote")
    found = Given()
    files: list[Path] = []
    for path in paths:
        summary = _summary(path)
        if summary is None:
            files.append(path)
        else:
            found.suites.append(summary)
            files += _records_of(summary, path)
    unique = list(dict.fromkeys(path.resolve() for path in files))
    count = Counter(path.name for path in unique)
    for path in unique:
        name = path.name if count[path.name] == 1 else f"{path.parent.name}/{path.name}"
        found.records.append((text(name, 80), read(path)))
    return found


def _summary(path: Path) -> Summary | None:
    """The content of ``path`` if it is a suite's summary: those are small, and say so."""
    try:
        if path.stat().st_size > MOST_SUMMARY_BYTES:
            return None
    except OSError:
        return None
    content = read_json_record(path, MOST_BYTES)
    schema = content.get("schema") if isinstance(content, dict) else None
    return Summary(text(path.name, 80), content) if isinstance(schema, str) and schema.startswith(FORMAT) else None


def _records_of(summary: Summary, path: Path) -> list[Path]:
    names = summary.content.get("records")
    if not isinstance(names, list) or len(names) > MOST_RECORDS_OF_A_SUITE:
        raise DataError(
            "CK-B010",
            "the file is no benchmark record",
            where=printable(path),
            why="a suite's summary lists its records",
            fix="give the file that `bench suite` wrote",
        )
    checked = [check_relative(name, printable(path)) for name in names]
    folders = (path.parent, path.parent / _FOLDER)
    places = ([folder / name for folder in folders] for name in checked)
    return [next((place for place in each if place.is_file()), each[-1]) for each in places]
