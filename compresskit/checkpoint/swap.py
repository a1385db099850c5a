"""Putting a finished folder in the place of another, wholly or not at all, whenever the process is killed.

On Linux two folders change places in one system call (``renameat2`` with RENAME_EXCHANGE). Elsewhere the old folder
is renamed aside and the new one put in; if the process dies between the two, ``recover`` brings the old one back.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from compresskit.checkpoint.faults import point

STAGED = ".ck-tmp-"
ASIDE = ".ck-old-"

_logger = logging.getLogger(__name__)

_HERE = -100  # AT_FDCWD: paths are relative to the working directory
_NO_REPLACE, _EXCHANGE = 1, 2
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def staging_folder(output: Path) -> Path:
    """A free name beside ``output``, on the same file system."""
    return output.with_name(f"{output.name}{STAGED}{uuid.uuid4().hex[:12]}")


def commit(staged: Path, output: Path) -> None:
    """Make ``staged`` the folder ``output``; what was there before is removed afterwards.

    Raises:
        OSError: nothing was changed.
    """
    point("swap.begin")
    if os.path.lexists(output):
        old: Path | None = staged if _rename(staged, output, _EXCHANGE) else _by_two_renames(staged, output)
    else:
        old = None
        if not _rename(staged, output, _NO_REPLACE):
            staged.rename(output)
    sync_folder(output.parent)
    point("swap.done")
    if old is not None:
        try:
            shutil.rmtree(old)
        except OSError as error:
            # The output is in place; what is left of the old one is swept by the next run.
            _logger.warning("compresskit: %s can't be removed: %s", old, error)


def _by_two_renames(staged: Path, output: Path) -> Path:
    aside = output.with_name(f"{output.name}{ASIDE}{uuid.uuid4().hex[:12]}")
    output.rename(aside)
    try:
        point("swap.aside")
        staged.rename(output)
    except BaseException:
        aside.rename(output)
        raise
    return aside


def _rename(source: Path, target: Path, flags: int) -> bool:
    """Linux's ``renameat2``; False where the system or the file system doesn't have it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(target))


def recover(output: Path) -> list[str]:
    """Clean up after runs that were killed; call it with the lock of ``output`` held.

    A folder that was renamed aside comes back if nothing is in its place; left-over staging folders go.

    Returns:
        What was done, in sentences for the user.
    """
    done: list[tuple[str, str]] = []
    aside = list(_siblings(output, ASIDE))
    if aside and not os.path.lexists(output):
        newest = max(aside, key=lambda path: path.stat().st_mtime_ns)
        newest.rename(output)
        aside.remove(newest)
        done.append(("CK-I010", f"a run was killed while it replaced {output}; the folder is back as it was before"))
    for path in (*aside, *_siblings(output, STAGED)):
        shutil.rmtree(path)
        done.append(("CK-I011", f"removed {path.name}, left by a run that was killed"))
    for code, sentence in done:
        _logger.warning("compresskit: %s: %s", code, sentence)
    return [f"{code}: {sentence}" for code, sentence in done]


def moved_aside(output: Path) -> bool:
    """Whether a killed run left the folder ``output`` under another name."""
    return not os.path.lexists(output) and any(_siblings(output, ASIDE))


def _siblings(output: Path, kind: str) -> Iterator[Path]:
    """Folders beside ``output`` whose names this module made for it."""
    pattern = re.compile(re.escape(output.name + kind) + "[0-9a-f]{12}")
    if output.parent.is_dir():
        for path in sorted(output.parent.iterdir()):
            if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                yield path


def sync_tree(folder: Path) -> None:
    """Make sure that everything in ``folder`` is on the disk."""
    for root, _, names in os.walk(folder):
        for name in sorted(names):
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                point("save.fsync")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """Make sure that the names in ``folder`` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
