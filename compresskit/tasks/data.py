"""The examples of a task: a local file, a data set that ``datasets`` saved, or one of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compresskit.calibrate.sources import read_records
from compresskit.errors import DataError

HUB = "hub:"
_HUB_NAME = re.compile(
    r"hub:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?(?::(?P<config>[\w.-]+))?#(?P<split>\w+)"
)

Records = Iterator[tuple[str, dict[str, Any] | str]]


def records(data: str | Path) -> Records:
    """The examples in ``data``, each with its place.

    Args:
        data: a .txt, .tsv, .csv or .jsonl file, .gz may follow; a .parquet file or a folder that
            ``Dataset.save_to_disk`` wrote; or ``hub:NAME[@REVISION][:CONFIG]#SPLIT``.

    Raises:
        DataError: CK-D001 no such file, CK-D002 a format that isn't read, CK-D050 `datasets` can't give it.
    """
    text = str(data)
    if text.startswith(HUB):
        return _rows(_from_hub(text), text)
    path = Path(data)
    if path.is_dir() or path.suffix == ".parquet":
        return _rows(_local(path), text)
    return read_records(path)


def exists(data: str | Path) -> bool:
    """Whether ``data`` is there; what is on the hub is taken to be."""
    return str(data).startswith(HUB) or Path(data).exists()


def _rows(dataset: Any, name: str) -> Records:
    for number, row in enumerate(dataset):
        yield f"row {number}", dict(row)


def _local(path: Path) -> Any:
    import datasets

    if path.suffix == ".parquet" and not path.is_file():
        raise DataError("CK-D001", "there is no such data file", where=str(path), fix="check the path")
    try:
        found = datasets.Dataset.from_parquet(str(path)) if path.is_file() else datasets.load_from_disk(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise _unreadable(str(path), error) from error
    if isinstance(found, datasets.DatasetDict):
        raise DataError(
            "CK-D050",
            "the folder holds several splits",
            where=str(path),
            fix=f"give one of its folders: {', '.join(found)}",
        )
    return found


def _from_hub(name: str) -> Any:
    import datasets

    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise DataError(
            "CK-D050", "it isn't plain which data set is meant", where=name, fix="hub:NAME[@REVISION][:CONFIG]#SPLIT"
        )
    try:
        return datasets.load_dataset(match["name"], match["config"], split=match["split"], revision=match["revision"])
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreadable(name, error) from error


def _unreadable(where: str, error: Exception) -> DataError:
    return DataError(
        "CK-D050",
        "the data set can't be loaded",
        where=where,
        why=str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__,
        fix="check its name, split and the network, or give a local file",
    )
