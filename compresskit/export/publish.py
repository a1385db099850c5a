"""Files are made beside their place, and come to it only when every check has passed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from compresskit.checkpoint import manifest
from compresskit.checkpoint.files import printable
from compresskit.checkpoint.save import add_files
from compresskit.errors import ResourceError, UsageError


def checkpoint_around(output: Path) -> Path | None:
    """The compressed checkpoint that ``output`` would lie in, or None."""
    for folder in output.parents:
        if (folder / manifest.NAME).is_file() and (folder / "config.json").is_file():
            return folder
    return None


def check_target(output: Path) -> Path:
    """``output`` as an absolute path that can be written to.

    Raises:
        UsageError: CK-X009, not the name of an ONNX file.
    """
    target = Path(os.path.abspath(output))
    if target.suffix != ".onnx" or target.is_dir():
        raise UsageError(
            "CK-X009", f"{printable(target)} is no place for an ONNX file", fix="give a file that ends in .onnx"
        )
    return target


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Path]:
    """An empty folder on the file system of ``output``, outside any checkpoint, gone afterwards.

    Raises:
        ResourceError: CK-X010, it can't be made.
    """
    around = checkpoint_around(output)
    place = output.parent if around is None else around.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{output.stem}.", dir=place)
    except OSError as error:
        raise ResourceError(
            "CK-X010", f"nothing can be written to {printable(place)}", why=str(error), fix="check its rights and space"
        ) from error
    with folder as name:
        yield Path(name)


def publish(staged: Sequence[Path], output: Path) -> list[Path]:
    """Move the ``staged`` files beside ``output``, over those that are there; give their new places."""
    targets = [output.parent / path.name for path in staged]
    around = checkpoint_around(output)
    if around is not None:
        pairs = zip(staged, targets, strict=True)
        add_files(around, {target.relative_to(around).as_posix(): path for path, target in pairs})
        return targets
    for path, target in zip(staged, targets, strict=True):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        path.replace(target)
    return targets
