"""What a peer is: another project's way to compress the same model, made ready to run beside ours."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from compresskit.checkpoint.source import Source

WEIGHTS = (".safetensors", ".bin", ".onnx", ".data", ".h5", ".msgpack", ".pt", ".ot")


@dataclass(frozen=True)
class Made:
    """A peer's model, ready to be measured.

    Args:
        spec: what ``bench run`` takes: ``ENGINE=PATH`` or a file.
        weights: bytes of weights, where the file at ``spec`` isn't what would be served; else None.
        note: how it was made.
    """

    spec: str
    weights: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Material:
    """What peers start from.

    Args:
        source: the fp32 checkpoint.
        onnx: our fp32 export of it, without fused attention.
        texts: sentences to calibrate on.
    """

    source: Source
    onnx: Path
    texts: Sequence[str]
    max_length: int = 128


class Peer(ABC):
    """One peer. ``make`` is run in this process, once; what it gives is run by a worker."""

    name: ClassVar[str]
    title: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]

    @abstractmethod
    def make(self, material: Material, folder: Path) -> Made:
        """Compress into the empty ``folder``."""

    def versions(self) -> dict[str, str]:
        """Versions of what does the work.

        Raises:
            PackageNotFoundError: one isn't installed.
        """
        return {package: version(package) for package in self.packages}

    def absent(self) -> str | None:
        """Why the peer can't be run here; None if it can."""
        try:
            self.versions()
        except PackageNotFoundError as error:
            return f"{error.name} is not installed (extra `peers`)"
        return None


def put_beside(source: Path, folder: Path) -> None:
    """Config, tokenizer and so on next to a model's file: everything of a checkpoint but its weights."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.suffix not in WEIGHTS and not path.name.endswith(".index.json"):
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def link_all(source: Path, folder: Path) -> None:
    """All files of a checkpoint, by hard links where that can be."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:
                shutil.copy(path, target)
