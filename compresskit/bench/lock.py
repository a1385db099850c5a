"""One benchmark at a time on a machine: two would measure each other."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from compresskit.checkpoint.files import printable
from compresskit.errors import ResourceError

VARIABLE = "COMPRESSKIT_BENCH_LOCK"


def lock_path() -> Path:
    """The lock file; the environment variable ``COMPRESSKIT_BENCH_LOCK`` names another."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "compresskit" / "bench.lock"


@contextlib.contextmanager
def machine_lock(path: Path | None = None) -> Iterator[None]:
    """Hold the machine's lock; it goes with the process.

    Raises:
        ResourceError: CK-B012, another benchmark runs; CK-B011, the file can't be made.
    """
    place = path or lock_path()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ResourceError(
            "CK-B011", "the lock file can't be made", where=printable(place), why=str(error), fix=f"set {VARIABLE}"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(
                "CK-B012",
                "another benchmark runs on this machine",
                where=printable(place),
                why="two at a time would measure each other",
                fix="wait until it is over",
            ) from None
        yield
    finally:
        os.close(descriptor)
