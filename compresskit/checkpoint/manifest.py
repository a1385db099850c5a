"""``manifest.json``: every file of a checkpoint with its size and sha256, and which software wrote it. No dates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compresskit import __version__
from compresskit.checkpoint.files import check_relative, hash_file, printable, regular_file
from compresskit.checkpoint.strict_json import read_json
from compresskit.errors import ModelError, SecurityError

NAME = "manifest.json"
FORMAT_VERSION = 1
TOOLS = ("torch", "transformers", "safetensors", "tokenizers")

_MOST_BYTES = 16 * 10**6
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Entry:
    """One file: its path in the folder, bytes, and hash."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a checkpoint in order of their paths, and the versions of the software that wrote it."""

    files: tuple[Entry, ...]
    tools: Mapping[str, str]

    def by_path(self) -> dict[str, Entry]:
        """The entries by their paths."""
        return {entry.path: entry for entry in self.files}

    @property
    def total_bytes(self) -> int:
        """Bytes of all files, without the manifest itself."""
        return sum(entry.size for entry in self.files)

    def to_json(self) -> str:
        """The content of the file."""
        content = {
            "format_version": FORMAT_VERSION,
            "tools": dict(sorted(self.tools.items())),
            "files": [{"path": entry.path, "size": entry.size, "sha256": entry.sha256} for entry in self.files],
        }
        return json.dumps(content, indent=1) + "\n"


def tool_versions() -> dict[str, str]:
    """Versions of what writes checkpoints."""
    return {"compresskit": __version__, **{name: version(name) for name in TOOLS}}


def build(folder: Path, *, known: Mapping[str, Entry] | None = None) -> Manifest:
    """List the files of ``folder``, hashing all but the ``known`` ones."""
    known = known or {}
    entries = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name == NAME:
            continue
        entries.append(known[name] if name in known else entry_of(folder, name))
    return Manifest(tuple(sorted(entries, key=lambda entry: entry.path)), tool_versions())


def entry_of(folder: Path, name: str) -> Entry:
    """The entry of one file, as it now is."""
    sha256, identity = hash_file(regular_file(folder, name))
    return Entry(name, identity.size, sha256)


def read(folder: Path) -> Manifest:
    """The manifest of ``folder``.

    Raises:
        ModelError: CK-M020, there is none, or it is malformed or of a newer version; CK-M006, it is no JSON.
        SecurityError: CK-S003, it names a path outside the folder, or one twice.
    """
    where = printable(folder / NAME)
    try:
        content, _, _ = read_json(regular_file(folder, NAME), _MOST_BYTES)
    except FileNotFoundError:
        raise ModelError(
            "CK-M020",
            "the folder is no checkpoint of compresskit: it has no manifest.json"
            if folder.is_dir()
            else "there is no such folder",
            where=printable(folder),
            fix="give a folder that `compresskit apply` made",
        ) from None
    if not isinstance(content, dict) or type(content.get("format_version")) is not int:
        raise _malformed(where, "it has no format_version")
    if content["format_version"] > FORMAT_VERSION:
        raise _malformed(where, f"it has version {content['format_version']}", "upgrade compresskit")
    files, tools = content.get("files"), content.get("tools", {})
    if not isinstance(files, list) or not isinstance(tools, dict):
        raise _malformed(where, "it lists no files")
    entries = tuple(_entry(item, where) for item in files)
    _refuse_clashes((entry.path for entry in entries), where)
    return Manifest(entries, {str(name): str(value) for name, value in tools.items()})


def _entry(item: Any, where: str) -> Entry:
    if not isinstance(item, dict) or set(item) != {"path", "size", "sha256"}:
        raise _malformed(where, "an entry hasn't path, size and sha256")
    path, size, sha256 = check_relative(item["path"], where), item["size"], item["sha256"]
    if type(size) is not int or size < 0 or not isinstance(sha256, str) or len(sha256) != 64 or set(sha256) - _HEX:
        raise _malformed(where, f"the entry of {printable(path, 80)} has no size or sha256")
    return Entry(path, size, sha256)


def _refuse_clashes(paths: Iterable[str], where: str) -> None:
    """No path twice, also where upper and lower case are one, and none that is a folder of another."""
    seen: set[str] = {NAME}
    folders: set[str] = set()
    for path in paths:
        folded = path.casefold()
        inside = {folded[:index] for index, letter in enumerate(folded) if letter == "/"}
        if folded in seen or folded in folders or inside & seen:
            raise SecurityError(
                "CK-S003",
                f"the manifest names {printable(path, 80)!r} twice",
                where=where,
                why="two entries are one file on some systems",
                fix="fetch the checkpoint again",
            )
        seen.add(folded)
        folders |= inside


def _malformed(where: str, why: str, fix: str = "fetch the checkpoint again") -> ModelError:
    return ModelError("CK-M020", "the manifest can't be used", where=where, why=why, fix=fix)


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every listed file with its entry.

    Raises:
        ModelError: CK-M016, a file is missing or has changed.
        SecurityError: CK-S003, a file is a link out of the folder, or no regular file.
    """
    for entry in manifest.files:
        try:
            path = regular_file(folder, entry.path)
        except FileNotFoundError:
            raise differs(folder, entry.path, "it is missing") from None
        size = path.stat().st_size
        if size != entry.size:
            raise differs(folder, entry.path, f"it has {size} bytes, not {entry.size}")
        if hash_file(path)[0] != entry.sha256:
            raise differs(folder, entry.path, "its sha256 is another")


def differs(folder: Path, name: str, why: str) -> ModelError:
    """The error for a file that is not what the manifest says."""
    return ModelError(
        "CK-M016",
        f"{printable(name, 120)} is not what the manifest says",
        where=printable(folder),
        why=why,
        fix="fetch the checkpoint again, or make it anew",
    )
