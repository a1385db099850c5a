"""What was measured so far, a JSON object a line, on disk before the next block begins; ``--resume`` starts from it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from compresskit.bench.blocks import Block
from compresskit.checkpoint.files import printable
from compresskit.errors import ResourceError, UsageError


class Journal:
    """The ``.jsonl`` beside a record.

    Args:
        path: made anew, or read if ``resume``.
        header: what must be the same to go on: models, plan, inputs, environment.

    Raises:
        UsageError: CK-B016, nothing to resume, or the run was another, or on another machine.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        if resume:
            self._read(header)
        self.session = sum(entry["kind"] == "session" for entry in self.entries)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("ab" if resume else "wb")
        if not resume:
            self.add("header", **header)
        self.add("session")

    def add(self, kind: str, **content: Any) -> None:
        """Append an entry, and wait until it is on disk."""
        entry = {"kind": kind, **content}
        try:
            self._stream.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise ResourceError(
                "CK-B011", "the journal can't be written", where=printable(self.path), why=str(error)
            ) from error
        self.entries.append(entry)

    def blocks(self) -> list[Block]:
        """All finished blocks, in order."""
        return [Block.model_validate(entry["block"]) for entry in self.entries if entry["kind"] == "block"]

    def find(self, kind: str, **wanted: Any) -> dict[str, Any] | None:
        """The last entry of a kind with these values."""
        return next(
            (
                entry
                for entry in reversed(self.entries)
                if entry["kind"] == kind and all(entry.get(key) == value for key, value in wanted.items())
            ),
            None,
        )

    def close(self) -> None:
        """No more entries."""
        self._stream.close()

    def _read(self, header: dict[str, Any]) -> None:
        """Entries of the run so far; a last line that a kill cut off is dropped, also from the file."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            raise UsageError(
                "CK-B016", f"there is nothing to resume: no {printable(self.path.name)}", fix="run without --resume"
            ) from None
        whole = content[: content.rfind(b"\n") + 1]
        try:
            self.entries = [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            raise UsageError(
                "CK-B016",
                f"{printable(self.path.name)} is damaged",
                where=printable(self.path),
                fix="run without --resume",
            ) from None
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        first = dict(self.entries[0]) if self.entries else {}
        first.pop("kind", None)
        wanted = json.loads(json.dumps(header))
        changed = sorted(key for key in {*first, *wanted} if first.get(key) != wanted.get(key))
        if changed:
            raise UsageError(
                "CK-B016",
                "the run can't be resumed: it was another one",
                where=printable(self.path),
                why=f"changed: {', '.join(changed)}",
                fix="run without --resume, which begins anew",
            )
