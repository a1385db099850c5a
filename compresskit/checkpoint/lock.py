"""One run at a time on an output: an advisory lock on ``OUT.lock``, which goes with the process that holds it.

The file names its holder (process, host, start), for the message of the second run and for telling a lock that a
killed run left behind from one that is held on another machine of a shared file system.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from compresskit.checkpoint.files import printable
from compresskit.checkpoint.storage import storage_errors
from compresskit.checkpoint.swap import recover
from compresskit.errors import ResourceError

SUFFIX = ".lock"

_logger = logging.getLogger(__name__)
_held: dict[str, tuple[int, int]] = {}  # real path of a lock file -> (process, thread) that holds it
_TRIES = 50
_SAME_START = 2.0  # seconds: start times are computed from clocks that are adjusted


@dataclass(frozen=True)
class Holder:
    """Who holds, or held, a lock. ``start`` is the start of the process, in seconds since 1970."""

    pid: int
    host: str
    start: float

    @staticmethod
    def here() -> Holder:
        """This process."""
        return Holder(os.getpid(), socket.gethostname(), psutil.Process().create_time())

    def alive(self) -> bool:
        """Whether that very process runs on this machine; one of the same number isn't it."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.start) < _SAME_START
        except psutil.Error:
            return False

    def __str__(self) -> str:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.start))
        return f"process {self.pid} on {printable(self.host, 60)}, started {started}"


@contextlib.contextmanager
def output_lock(output: str | Path) -> Iterator[None]:
    """Hold the lock of ``output``, after cleaning up what killed runs left there. The holder may enter again.

    Makes the parent folders; those still empty at the end are removed.

    Raises:
        ResourceError: CK-I009, another run holds it; CK-I005, the folder can't be written to.
    """
    target = Path(os.path.abspath(output))
    path = target.with_name(target.name + SUFFIX)
    key, me = os.path.realpath(path), (os.getpid(), threading.get_ident())
    if _held.get(key) == me:
        yield
        return
    with storage_errors(target):
        made = _make_folders(target.parent)
        descriptor = _acquire(path)
    _held[key] = me
    try:
        with storage_errors(target):
            recover(target)
        yield
    finally:
        del _held[key]
        # Removed while still held: who waits on this file sees that it is another one, and opens anew.
        path.unlink(missing_ok=True)
        os.close(descriptor)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _make_folders(folder: Path) -> list[Path]:
    """Make ``folder`` and its parents; those that were not there, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _acquire(path: Path) -> int:
    for _ in range(_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = _is_current(descriptor, path)
            if current:
                _replace_holder(descriptor, path)
                return descriptor
        except BlockingIOError:
            holder = _read_holder(descriptor)
            os.close(descriptor)
            raise _busy(path, str(holder or "another process")) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise _busy(path, "several other runs in turn")


def _is_current(descriptor: int, path: Path) -> bool:
    """Whether the locked file is still the one at ``path``, and not one that its holder just removed."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _replace_holder(descriptor: int, path: Path) -> None:
    me, before = Holder.here(), _read_holder(descriptor)
    if before is not None:
        if before.host != me.host:
            raise _busy(path, str(before), f"if that run is over, delete {printable(path.name)}")
        if before.pid != me.pid and before.alive():
            raise _busy(path, str(before))
        _logger.warning("compresskit: %s: took over the lock of a run that is gone (%s)", "CK-I013", before)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(me)).encode(), 0)


def _read_holder(descriptor: int) -> Holder | None:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(int(content["pid"]), str(content["host"]), float(content["start"]))
    except (ValueError, KeyError, TypeError):
        return None


def _busy(path: Path, holder: str, fix: str = "wait for it, or choose another output") -> ResourceError:
    return ResourceError("CK-I009", "another run writes to this output", where=printable(path), why=holder, fix=fix)
