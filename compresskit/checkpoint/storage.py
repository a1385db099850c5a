"""From what the operating system says about a disk to an error that a user can act on."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from compresskit.checkpoint.files import printable
from compresskit.errors import ResourceError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_SYSTEM_ERROR = re.compile(r"os error (\d+)")


@contextlib.contextmanager
def storage_errors(output: Path, needed: int | None = None) -> Iterator[None]:
    """Turn errors of the disk into typed ones.

    Args:
        needed: bytes that were to be written, for the message.

    Raises:
        ResourceError: CK-I005 not allowed, CK-I007 full, CK-I008 any other failure.
    """
    try:
        yield
    except OSError as error:
        raise _typed(error.errno, str(error), output, needed) from error
    except SafetensorError as error:
        # The library gives the number only in its text.
        found = _SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        raise _typed(int(found.group(1)), str(error), output, needed) from error


def _typed(number: int | None, text: str, output: Path, needed: int | None) -> ResourceError:
    where = printable(output)
    if number in _FULL:
        free = free_bytes(output)
        asked = f"needed up to {needed / 1e6:.1f} MB, " if needed is not None else ""
        return ResourceError(
            "CK-I007",
            "the disk is full, or a limit on file sizes is reached",
            where=where,
            why=f"{asked}{free / 1e6:.1f} MB are free ({printable(text)})",
            fix="free some space or choose an output on another disk; what was there before is unchanged",
        )
    if number in _FORBIDDEN:
        return ResourceError(
            "CK-I005",
            "the output can't be written",
            where=where,
            why=f"{printable(text)}; running as user {os.geteuid()}",
            fix="choose a folder that you may write to",
        )
    return ResourceError(
        "CK-I008",
        "reading or writing failed",
        where=where,
        why=printable(text),
        fix="check the disk; what was there before is unchanged",
    )


def nearest_folder(path: Path) -> Path:
    """The innermost folder on the way to ``path`` that exists."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def free_bytes(path: Path) -> int:
    """Free space where ``path`` is or will be."""
    return shutil.disk_usage(nearest_folder(Path(os.path.abspath(path)))).free
