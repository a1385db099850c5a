"""The state between steps, on disk beside the output, so that a killed ``apply`` resumes at the last finished one.

Training that was cut short goes on from what it saved itself in the scratch space.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from compresskit import __version__
from compresskit.checkpoint.files import hash_file
from compresskit.checkpoint.save import save_checkpoint
from compresskit.checkpoint.source import open_source
from compresskit.core import processes
from compresskit.errors import UsageError

STATE = "state.json"


def fingerprint(name: str) -> str:
    """sha256 over a file's bytes, or over those of all files in a folder; "" for what isn't on disk."""
    path = Path(name)
    if path.is_file():
        return hash_file(path)[0]
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else []
    parts = [f"{item.relative_to(path)} {hash_file(item)[0]}" for item in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest() if parts else ""


class Workspace:
    """The folder ``OUT.ck-work``: ``state.json``, the model after the last finished step, and scratch space.

    Args:
        output: where the result will go; None keeps no state (the caller wants the model only).
        identity: what must be equal for a resume: hashes of recipe, models and data files, seed, device, type,
            versions.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, keep_steps: bool) -> None:
        self.folder = folder
        self.identity = {**identity, "compresskit": __version__}
        self.keep_steps = keep_steps
        self.rows: list[dict[str, Any]] = []

    @property
    def scratch(self) -> Path:
        """A folder for caches; removed with the workspace."""
        path = self.folder / "scratch"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def start(self, *, resume: bool) -> int:
        """Prepare the folder; the number of steps that are already done. Of several processes the first one does it.

        Raises:
            UsageError: CK-U012 with ``resume`` but nothing that can be; CK-U013 if recipe, a model, a data file, seed,
                device, type or versions changed since.
        """
        processes.lead(lambda: self._start(resume))
        self.rows = processes.agree(self.rows)
        return len(self.rows)

    def _start(self, resume: bool) -> None:
        if not resume:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
            self._write_state()
            return
        then, rows = self._read_state()
        changed = [
            f"{key}: {then.get(key)} then, {value} now"
            for key, value in self.identity.items()
            if then.get(key) != value
        ]
        if changed:
            raise UsageError(
                "CK-U013",
                "the interrupted run was another one",
                where=str(self.folder),
                why="; ".join(changed),
                fix="run without --resume to start anew",
            )
        self.rows = rows

    def _read_state(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Identity and rows of the interrupted run."""
        state, why = self.folder / STATE, ""
        try:
            saved = json.loads(state.read_text())
            return dict(saved["identity"]), list(saved["rows"])
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, KeyError) as error:
            why = f"{STATE} is damaged: {type(error).__name__}: {error}"
        raise UsageError(
            "CK-U012",
            "there is no interrupted run to resume",
            where=str(self.folder),
            why=why,
            fix="run without --resume",
        )

    def load(self, device: str) -> PreTrainedModel:
        """The model after the last finished step on ``device``, its files checked against their manifest."""
        return open_source(self.folder / f"step-{len(self.rows)}").load_model(device=device)

    def finish_step(self, model: PreTrainedModel, row: dict[str, Any]) -> None:
        """Record a finished step: first the model, then the state that names it, then the older model goes."""
        self.rows.append(row)
        if not self.keep_steps or not processes.is_first():
            return
        number = len(self.rows)
        save_checkpoint(model, self.folder / f"step-{number}", source=None, extra_files={}, overwrite=True)
        self._write_state()
        shutil.rmtree(self.folder / f"step-{number - 1}", ignore_errors=True)

    def _write_state(self) -> None:
        partial = self.folder / f"{STATE}.partial"
        with partial.open("w") as stream:
            json.dump({"identity": self.identity, "rows": self.rows}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(self.folder / STATE)

    def remove(self) -> None:
        """Delete the folder, when all have come here."""
        processes.lead(lambda: shutil.rmtree(self.folder, ignore_errors=True))
