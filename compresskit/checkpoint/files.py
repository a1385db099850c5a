"""Reading files of a folder that a stranger may have made: which names are allowed, what may lie behind one.

A name is relative, normalised and printable. Behind it is a regular file inside the folder, or a blob of the Hugging
Face cache that the folder belongs to; nothing else is opened, and opening never waits.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from compresskit.errors import ModelError, SecurityError

MOST_NAME_BYTES = 255
MOST_PATH_CHARACTERS = 1024

_DRIVE = re.compile(r"[A-Za-z]:")
_LFS_NAME = re.compile(r"[0-9a-f]{64}")
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class Identity:
    """What changes when a file is replaced or written to."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @staticmethod
    def of(status: os.stat_result) -> Identity:
        """From what ``os.stat`` or ``os.fstat`` gives."""
        return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def printable(text: object, limit: int = 200) -> str:
    """``text`` for a message: one line, escaped where it isn't printable, at most ``limit`` characters."""
    shown = str(text)
    if not shown.isprintable():
        shown = shown.encode("unicode_escape", "backslashreplace").decode("ascii")
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def check_relative(name: object, where: str) -> str:
    """``name`` if it is a relative path that stays inside its folder on every system.

    Raises:
        SecurityError: CK-S003.
    """
    if not isinstance(name, str):
        raise _outside(name, where, "it is no text")
    parts = name.split("/")
    flaw = ""
    if not name or len(name) > MOST_PATH_CHARACTERS:
        flaw = "it is empty or too long"
    elif not name.isprintable():
        flaw = "it has characters that can't be printed"
    elif name.startswith("/") or "\\" in name or _DRIVE.match(name):
        flaw = "it is absolute, or of another system"
    elif any(part in ("", ".", "..") for part in parts):
        flaw = "it isn't normalised, or leaves the folder"
    elif any(len(os.fsencode(part)) > MOST_NAME_BYTES for part in parts):
        flaw = "a part of it is too long"
    if flaw:
        raise _outside(name, where, flaw)
    return name


def _outside(name: object, where: str, why: str) -> SecurityError:
    return SecurityError(
        "CK-S003",
        f"{printable(name, 120)!r} may not be read",
        where=where,
        why=why,
        fix="only regular files inside the folder are read; put the file itself there",
    )


def regular_file(folder: Path, name: str, *, any_link: bool = False) -> Path:
    """The path of ``name`` in ``folder``, if a regular file is there.

    Args:
        any_link: links may lead out of the folder (it belongs to an installed package, which is trusted as code is).

    Raises:
        FileNotFoundError: nothing is there.
        SecurityError: CK-S003, a folder, pipe or device, or a link that leads out of the folder.
    """
    path = folder / check_relative(name, str(folder))
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise _outside(name, str(folder), "it is no regular file")
    real = path.resolve()
    if not any_link and not real.is_relative_to(folder.resolve()) and not _is_hub_blob(folder, real):
        raise _outside(name, str(folder), f"it is a link to {printable(real)}, outside the folder")
    return path


def _is_hub_blob(folder: Path, real: Path) -> bool:
    """Whether ``folder`` is ``models--x/snapshots/REVISION[/...]`` of a cache, and ``real`` a blob beside it."""
    for parent in folder.absolute().parents:
        if parent.name == "snapshots":
            return real.parent == (parent.parent / "blobs").resolve()
    return False


def hub_sha256(path: Path) -> str | None:
    """The sha256 that the Hub gave for a large file of its cache: blobs are named by it."""
    real = path.resolve()
    return real.name if real.parent.name == "blobs" and _LFS_NAME.fullmatch(real.name) else None


def open_regular(path: Path) -> io.BufferedReader:
    """Open ``path`` for reading without ever waiting for a pipe or device.

    Raises:
        SecurityError: CK-S003, it is no regular file.
        OSError: it can't be opened.
    """
    stream = os.fdopen(os.open(path, _READ), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise _outside(path.name, str(path.parent), "it is no regular file")
    return stream


def read_small(path: Path, limit: int) -> tuple[bytes, Identity]:
    """The content of ``path`` and the identity of the very file that was read.

    Raises:
        ModelError: CK-M006, above ``limit`` bytes.
    """
    with open_regular(path) as stream:
        identity = Identity.of(os.fstat(stream.fileno()))
        content = b"" if identity.size > limit else stream.read(limit + 1)
    if identity.size > limit or len(content) > limit:
        raise ModelError(
            "CK-M006",
            f"{path.name} is too large: {identity.size} bytes, at most {limit} are read",
            where=printable(path),
            fix="such files describe a model and are small; restore it from where the model came from",
        )
    return content, identity


def hash_file(path: Path) -> tuple[str, Identity]:
    """The sha256 of ``path`` in hexadecimal, and the identity of the very file that was read."""
    with open_regular(path) as stream:
        identity = Identity.of(os.fstat(stream.fileno()))
        return hashlib.file_digest(stream, "sha256").hexdigest(), identity
