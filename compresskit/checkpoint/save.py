"""Writing a checkpoint: staged beside the output, read back and compared, then put in place in one step.

Whenever the process dies or the disk fails, the output is wholly what it was before or wholly the new one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compresskit.checkpoint import contents, manifest
from compresskit.checkpoint.faults import point
from compresskit.checkpoint.files import check_relative, printable
from compresskit.checkpoint.lock import output_lock
from compresskit.checkpoint.manifest import Entry, Manifest
from compresskit.checkpoint.preflight import check_free_space, check_output
from compresskit.checkpoint.storage import storage_errors
from compresskit.checkpoint.swap import commit, recover, staging_folder, sync_folder, sync_tree
from compresskit.errors import ModelError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compresskit.checkpoint.source import Source

__all__ = [
    "SavedCheckpoint",
    "Verification",
    "add_files",
    "check_free_space",
    "check_output",
    "publish_folder",
    "recover",
    "save_checkpoint",
    "verify",
]

Content = bytes | str | Path

MOST_SHARD = "5GB"


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that was written and read back.

    Args:
        path: its folder.
        native: whether it is a stock checkpoint, which loads without compresskit.
        disk_bytes: the files needed to serve it: weights, config, tokenizer.
        manifest: all its files.
    """

    path: Path
    native: bool
    disk_bytes: int
    manifest: Manifest


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found to be true.

    Args:
        files: how many files have the size and hash that the manifest says.
        unlisted: files of the folder that the manifest doesn't name.
        disk_bytes: the files needed to serve it.
        native: whether it loads without compresskit.
        operations: length of its layout.
    """

    files: int
    unlisted: tuple[str, ...]
    disk_bytes: int
    native: bool
    operations: int


def save_checkpoint(
    model: PreTrainedModel,
    output: str | Path,
    *,
    source: Source | None = None,
    extra_files: Mapping[str, Content] | None = None,
    overwrite: bool = False,
    max_shard_size: str = MOST_SHARD,
) -> SavedCheckpoint:
    """Write ``model`` to the folder ``output`` so that plain ``from_pretrained`` gives it back bit for bit.

    Args:
        source: its tokenizer, sentence-transformers files, model card and licence travel along.
        extra_files: further files by relative name, as text, bytes, or a file to copy; they win over the source's.
        overwrite: replace a checkpoint that is there.
        max_shard_size: weights above this are written as several files.

    Raises:
        UsageError: CK-I001 to CK-I004, CK-I012, CK-I014: the output or a name of a file.
        ResourceError: CK-I005, CK-I007 to CK-I009: rights, full disk, failure, another run.
        ModelError: CK-I015, CK-I016, CK-M014: the files don't give the model back, or it can't be saved.
    """
    from compresskit.checkpoint import readback

    def write(folder: Path) -> bool:
        return readback.write_model(model, folder, max_shard_size)

    def check(folder: Path) -> Source:
        return readback.read_back(model, folder)

    return save_written(
        write, check, output, needed=_bytes_of(model), source=source, extra_files=extra_files, overwrite=overwrite
    )


def save_written(
    write: Callable[[Path], bool],
    check: Callable[[Path], Source],
    output: str | Path,
    *,
    needed: int,
    source: Source | None = None,
    extra_files: Mapping[str, Content] | None = None,
    overwrite: bool = False,
) -> SavedCheckpoint:
    """Make the checkpoint ``output`` of what ``write`` puts into a folder and ``check`` finds to be right there.

    Args:
        write: writes weights and config; whether they are a stock checkpoint.
        check: reads them back, and opens them.
        needed: bytes that it may take.

    Raises:
        As ``save_checkpoint``, and what the two raise.
    """
    path = check_output(output, source=source, overwrite=overwrite)
    files = {_allowed(name): content for name, content in (extra_files or {}).items()}
    with output_lock(path):
        # Again, now that what a killed run left is cleaned up and nobody else can write.
        check_output(path, source=source, overwrite=overwrite)
        with _staging(path, needed=needed) as staged:
            point("save.begin")
            staged.mkdir()
            point("save.staged")
            saved = _fill(staged, write, check, source, files)
            point("save.complete")
            commit(staged, path)
        point("save.end")
    return SavedCheckpoint(path, saved.native, saved.disk_bytes, saved.manifest)


def _bytes_of(model: PreTrainedModel) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


@contextmanager
def _staging(output: Path, needed: int | None = None) -> Iterator[Path]:
    """A name for a staging folder that is gone afterwards; errors of the disk become typed ones."""
    staged = staging_folder(output)
    try:
        with storage_errors(output, needed):
            yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _fill(
    staged: Path,
    write: Callable[[Path], bool],
    check: Callable[[Path], Source],
    source: Source | None,
    files: Mapping[str, Content],
) -> SavedCheckpoint:
    """Write everything into ``staged``, read it back, and list it in the manifest."""
    from compresskit.checkpoint.readback import corrupted

    native = write(staged)
    point("save.weights")
    promised: dict[str, str] = {}
    for name, origin in (source.companion_files() if source is not None else {}).items():
        if name not in files and not (staged / name).exists():
            promised[name] = _write(staged / name, origin)
    point("save.companions")
    for name, content in files.items():
        promised[name] = _write(staged / name, content)
    point("save.extra")
    _settle_modes(staged)
    checked = check(staged)
    point("save.verified")
    known = {name: Entry(name, (staged / name).stat().st_size, sha256) for name, sha256 in checked.hashes().items()}
    listed = manifest.build(staged, known=known)
    for name, sha256 in promised.items():
        if listed.by_path()[name].sha256 != sha256:
            raise corrupted(staged, f"{printable(name)} is not what was written")
    _write_manifest(staged, listed)
    return SavedCheckpoint(staged, native, checked.disk_bytes, listed)


def _allowed(name: str) -> str:
    """A name that a caller may give to a file of a checkpoint.

    Raises:
        UsageError: CK-I014.
        SecurityError: CK-S003.
    """
    check_relative(name, "files to add")
    ours = name in ("config.json", manifest.NAME, contents.INDEX) or ("/" not in name and name.endswith(".safetensors"))
    if ours:
        raise UsageError("CK-I014", f"{name!r} is written by compresskit itself", fix="choose another name")
    return name


def _write(path: Path, content: Content) -> str:
    """Write a file anew, a real one; the sha256 of what was meant to be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        digest = hashlib.sha256()
        with content.open("rb") as origin, path.open("xb") as copy:
            while block := origin.read(1 << 20):
                digest.update(block)
                copy.write(block)
        return digest.hexdigest()
    data = content.encode() if isinstance(content, str) else content
    with path.open("xb") as stream:
        stream.write(data)
    return hashlib.sha256(data).hexdigest()


def _settle_modes(folder: Path) -> None:
    """Give every file the rights that the user's umask gives; safetensors writes its own for the owner only."""
    probe = folder / ".rights"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    mode = os.fstat(descriptor).st_mode & 0o777
    os.close(descriptor)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _write_manifest(folder: Path, listed: Manifest) -> None:
    """Everything else on the disk first, then the manifest, then the names."""
    sync_tree(folder)
    point("save.manifest")
    path = folder / manifest.NAME
    with path.open("x", encoding="utf-8") as stream:
        stream.write(listed.to_json())
        stream.flush()
        os.fsync(stream.fileno())
    sync_folder(folder)


def add_files(output: str | Path, files: Mapping[str, Content], *, remove: Collection[str] = ()) -> Manifest:
    """Add files to a checkpoint, or replace them, all at once, and list them in its manifest.

    Args:
        files: by relative name; text, bytes, or a file to copy.
        remove: names of files, or of folders ending in ``/``, that go.

    Raises:
        ModelError: CK-M020, ``output`` is no checkpoint of compresskit.
        UsageError: CK-I014, a name of weights, config or manifest.
        ResourceError: CK-I005, CK-I007 to CK-I009.
    """
    path = Path(os.path.abspath(output))
    names = {_allowed(name): content for name, content in files.items()}
    gone = tuple(name for name in remove if name.endswith("/"))
    with output_lock(path), _staging(path) as staged:
        before = manifest.read(path)
        point("add.begin")
        staged.mkdir()
        entries = {entry.path: entry for entry in before.files}
        for found in sorted(path.rglob("*")):
            name = found.relative_to(path).as_posix()
            if found.is_dir() and not found.is_symlink():
                continue
            if name == manifest.NAME or name in names or name in remove or name.startswith(gone):
                entries.pop(name, None)
            else:
                _link(found, staged / name)
        point("add.linked")
        promised = {name: _write(staged / name, content) for name, content in names.items()}
        point("add.written")
        for name, sha256 in promised.items():
            entries[name] = manifest.entry_of(staged, name)
            if entries[name].sha256 != sha256:
                raise ModelError("CK-I015", f"{name} was written, and read back is something else", where=str(path))
        _write_manifest(staged, Manifest(tuple(sorted(entries.values(), key=_path_of)), before.tools))
        point("add.complete")
        commit(staged, path)
        point("add.end")
    return manifest.read(path)


def _path_of(entry: Entry) -> str:
    return entry.path


def _link(origin: Path, target: Path) -> None:
    """The same file under another name, or a copy where the file system has no such links; neither is written to."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(origin, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(origin, target, follow_symlinks=False)


def publish_folder(staged: str | Path, output: str | Path, *, overwrite: bool = False) -> Path:
    """Move the finished checkpoint ``staged`` to ``output``, on the same file system, in one step.

    Raises:
        ModelError: CK-M020, ``staged`` is no finished checkpoint.
        UsageError, ResourceError: as ``check_output``.
    """
    origin = Path(os.path.abspath(staged))
    manifest.read(origin)
    path = check_output(output, overwrite=overwrite)
    with output_lock(path):
        check_output(path, overwrite=overwrite)
        with storage_errors(path):
            commit(origin, path)
    return path


def verify(folder: str | Path) -> Verification:
    """Check a checkpoint of compresskit: every listed file, headers, layout, and that all values are finite.

    Raises:
        ModelError: CK-M020 no checkpoint of ours, CK-M016 a file has changed, or what loading it finds.
        SecurityError: CK-S003, the manifest or a link leads out of the folder.
    """
    from compresskit.checkpoint.source import open_source

    path = Path(folder)
    listed = manifest.read(path)
    manifest.check_files(path, listed)
    source = open_source(path)
    model = source.load_model()
    layout = getattr(getattr(model.config, "quantization_config", None), "layout", [])
    there = {found.relative_to(path).as_posix() for found in path.rglob("*") if not found.is_dir()}
    unlisted = there - set(listed.by_path()) - {manifest.NAME}
    return Verification(
        len(listed.files), tuple(sorted(unlisted)), source.disk_bytes, not source.compressed, len(layout)
    )
