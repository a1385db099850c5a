"""Reading records of strangers, writing our own so that a crash leaves the old or the new."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from compresskit.checkpoint.files import printable, read_small
from compresskit.checkpoint.strict_json import parse
from compresskit.errors import DataError, ModelError, ResourceError, SecurityError


def read_json_record(path: Path, limit: int) -> Any:
    """The JSON value in ``path``: at most ``limit`` bytes, strict, from a regular file.

    Raises:
        DataError: CK-B010.
    """
    try:
        content, _ = read_small(path, limit)
        return parse(content, printable(path))
    except (ModelError, SecurityError, OSError) as error:
        why = error.why or error.what if isinstance(error, ModelError | SecurityError) else printable(error)
        raise DataError(
            "CK-B010",
            "the file is no benchmark record",
            where=printable(path),
            why=why,
            fix="give a file that `compresskit bench run -o` wrote",
        ) from None


def write_atomically(path: Path, text: str) -> None:
    """Write beside ``path``, flush to disk, then rename.

    Raises:
        ResourceError: CK-B011.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ResourceError(
            "CK-B011",
            "the record can't be written",
            where=printable(path),
            why=printable(error),
            fix="check its rights",
        ) from error
