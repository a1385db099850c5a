"""What is asked of an output before any work is done: its name, what is there already, whether it can be written.

A symbolic link is never an output: replacing a folder through a link would leave the reader of the link without one
for a moment, so it is refused, and the folder itself has to be named.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from compresskit.checkpoint import manifest
from compresskit.checkpoint.contents import CONFIG_BYTES
from compresskit.checkpoint.files import MOST_NAME_BYTES, printable, regular_file
from compresskit.checkpoint.storage import free_bytes, nearest_folder, storage_errors
from compresskit.checkpoint.strict_json import read_json
from compresskit.checkpoint.swap import moved_aside
from compresskit.errors import CompressKitError, ResourceError, UsageError

if TYPE_CHECKING:
    from compresskit.checkpoint.source import Source

REJECTED = ".rejected"
"""Ending of the folder beside the output where a result that missed a gate is kept."""

MOST_OUTPUT_NAME_BYTES = 215  # names of temporary and rejected folders beside the output are up to 40 bytes longer
_MOST_PATH_BYTES = 4096 - 512  # what lies inside needs room too


def check_output(output: str | Path, *, source: Source | None = None, overwrite: bool = False) -> Path:
    """The absolute path of ``output``, if a checkpoint may be made there. Nothing is changed.

    Args:
        source: the model that the run starts from; the output may be neither it, nor around it, nor inside it.
        overwrite: replace what is there, if it is a checkpoint or empty.

    Raises:
        UsageError: CK-I001 exists, CK-I002 the source, CK-I003 no folder, CK-I004 a name that can't be used,
            CK-I012 a folder that holds something else than a checkpoint.
        ResourceError: CK-I005, can't be written.
    """
    path = Path(os.path.abspath(_checked_name(output)))
    with storage_errors(path):
        _refuse_no_folder(path)
        if source is not None:
            _refuse_source(path, source.path)
        there = os.path.lexists(path) or moved_aside(path)
        if there and not overwrite:
            raise UsageError(
                "CK-I001",
                f"{printable(path)} exists already",
                fix="choose another output, or replace it with --overwrite",
            )
        if path.is_dir():
            _refuse_other_content(path)
        _try_to_write(path)
    return path


def check_free_space(output: str | Path, needed: int) -> None:
    """Refuse a run whose files won't fit.

    Args:
        needed: bytes.

    Raises:
        ResourceError: CK-I006.
    """
    free = free_bytes(Path(output))
    if free < needed:
        raise ResourceError(
            "CK-I006",
            f"there is not enough space: up to {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free",
            where=printable(nearest_folder(Path(os.path.abspath(output)))),
            fix="free some space, or choose an output on another disk",
        )


def _checked_name(output: str | Path) -> str:
    text = os.fspath(output)
    why = ""
    name = os.path.basename(os.path.abspath(text)) if "\0" not in text else "\0"
    if not text or not name:
        why = "it names no folder"
    elif not os.path.abspath(text).isprintable():
        why = "it has characters that can't be printed"
    elif len(os.fsencode(os.path.abspath(text))) > _MOST_PATH_BYTES:
        why = "the path is too long"
    elif any(len(os.fsencode(part)) > MOST_NAME_BYTES for part in Path(text).parts):
        why = f"a name in it has more than {MOST_NAME_BYTES} bytes"
    elif len(os.fsencode(name.removesuffix(REJECTED))) > MOST_OUTPUT_NAME_BYTES:
        why = f"its name has more than {MOST_OUTPUT_NAME_BYTES} bytes; temporary names beside it are longer"
    if why:
        raise UsageError("CK-I004", f"{printable(text, 120)!r} can't be an output", why=why, fix="choose another name")
    return text


def _refuse_no_folder(path: Path) -> None:
    kind = ""
    if path.is_symlink():
        kind = f"a link to {printable(os.readlink(path))}"
    elif path.exists() and not path.is_dir():
        kind = "a file"
    elif path.is_mount():
        kind = "a mount point, which can't be replaced"
    else:
        blocking = next((above for above in path.parents if os.path.lexists(above) and not above.is_dir()), None)
        if blocking is not None:
            kind = f"below {printable(blocking.name)}, which is no folder"
    if kind:
        raise UsageError(
            "CK-I003",
            f"{printable(path)} is {kind}",
            fix="name the folder itself" if path.is_symlink() else "choose the name of a folder that is to be made",
        )


def _refuse_source(path: Path, source: Path) -> None:
    """Compared by what is on disk, so that links, ``..`` and bind mounts don't hide that they are one."""
    relation = ""
    if path.is_dir() and path.samefile(source):
        relation = "is the source model"
    elif path.is_dir() and any(parent.samefile(path) for parent in source.resolve().parents):
        relation = "holds the source model"
    elif any(parent.is_dir() and parent.samefile(source) for parent in path.parents):
        relation = "lies inside the source model"
    if relation:
        raise UsageError(
            "CK-I002",
            f"the output {printable(path)} {relation}",
            why="the source is never changed",
            fix="choose a folder elsewhere",
        )


def _refuse_other_content(path: Path) -> None:
    names = {inner.name for inner in path.iterdir()}
    if names and not _is_checkpoint(path):
        raise UsageError(
            "CK-I012",
            f"{printable(path)} holds something else than a checkpoint",
            why=f"it has {len(names)} entries, among them {printable(min(names), 60)!r}; all would be deleted",
            fix="choose another output, or empty the folder yourself",
        )


def _is_checkpoint(path: Path) -> bool:
    """Whether the folder is one of ours, or of transformers: other software has files of the same names."""
    try:
        manifest.read(path)
        return True
    except CompressKitError:
        pass
    try:
        config, _, _ = read_json(regular_file(path, "config.json"), CONFIG_BYTES)
    except (FileNotFoundError, CompressKitError):
        return False
    return isinstance(config, dict) and bool(config.keys() & {"model_type", "architectures"})


def _try_to_write(path: Path) -> None:
    """Make and remove a folder where the output will be: rights, quotas and read-only mounts all show."""
    os.rmdir(tempfile.mkdtemp(prefix=".ck-probe-", dir=nearest_folder(path.parent)))
