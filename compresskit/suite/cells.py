"""What was finished: one file a cell, known by a hash of all that it depends on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compresskit.bench.files import read_json_record, write_atomically
from compresskit.errors import CompressKitError, DataError

FORMAT = "compresskit.suite-cell/1.0"
_MOST_BYTES = 64 * 2**20


@dataclass
class Cell:
    """One finished piece of work.

    Args:
        key: hash of what it depends on.
        content: what it found; empty if it failed.
        error: why it failed: code, what, where, why, fix.
    """

    key: str
    content: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str] | None = None


class Cells:
    """The finished cells in a folder.

    Args:
        resume: use those that are there; otherwise every one is made anew.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        self.folder, self.resume = folder, resume

    def find(self, name: str, key: str) -> Cell | None:
        """The cell ``name``, if it is there, was made from the same things and didn't fail."""
        path = self._path(name)
        if not self.resume or not path.is_file():
            return None
        try:
            content = read_json_record(path, _MOST_BYTES)
        except DataError:
            return None  # half-written or foreign: it is made again
        if not isinstance(content, dict) or content.get("schema") != FORMAT or content.get("key") != key:
            return None
        return None if content.get("error") else Cell(key, content["content"])

    def keep(self, name: str, cell: Cell) -> Cell:
        """Write ``cell`` at once."""
        content = {"schema": FORMAT, "key": cell.key, "content": cell.content, "error": cell.error}
        write_atomically(self._path(name), json.dumps(content, indent=1, allow_nan=False) + "\n")
        return cell

    def failed(self, name: str, key: str, error: CompressKitError) -> Cell:
        """Write down why the cell could not be made; a resumed run tries it again."""
        return self.keep(name, Cell(key, error=error.to_dict()))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '_')}.json"


def key_of(*parts: Any) -> str:
    """sha256 over ``parts`` as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
