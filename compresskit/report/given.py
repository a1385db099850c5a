"""The files that a page is made of: records, and summaries of suites that hold several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from compresskit.bench.record import Record, read
from compresskit.errors import UsageError
from compresskit.report.foreign import text


def read_records(paths: Sequence[Path]) -> list[tuple[str, Record]]:
    """``(name, record)`` of each file, in order; a file named twice is read once.

    Raises:
        UsageError: CK-B001, no file was given.
        DataError: CK-B010, a file is no record.
    """
    if not paths:
        raise UsageError("CK-B001", "there is nothing to report on", fix="give a file that `bench run -o` wrote")
    unique = list(dict.fromkeys(path.resolve() for path in paths))
    count = Counter(path.name for path in unique)
    return [
        (text(path.name if count[path.name] == 1 else f"{path.parent.name}/{path.name}", 80), read(path))
        for path in unique
    ]
