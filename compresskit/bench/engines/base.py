"""What the harness asks of an engine. Shapes: B batch, T tokens, V vocabulary."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from compresskit.errors import UsageError

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Settings:
    """How an engine is to run, the same for all arms.

    Args:
        device: cpu or cuda.
        dtype: floating type to load in; None: as stored.
    """

    threads: int = 1
    device: str = "cpu"
    dtype: str | None = None


@dataclass
class Decoding:
    """A text that is being written: the engine's own state between two tokens.

    Args:
        token: (B, 1) the last token, in the engine's own type.
        state: cache and whatever the next step needs.
    """

    token: Any
    state: Any


class Engine(ABC):
    """Loads one model and runs it. ``call`` is the timed part; ``prepare`` and ``arrays`` are outside of it."""

    name: ClassVar[str]
    package: ClassVar[str]
    on_device: ClassVar[bool] = False

    @abstractmethod
    def load(self, path: Path, settings: Settings) -> None:
        """Make the model ready to run.

        Raises:
            UsageError: CK-B005, the engine can't run this model on this device.
        """

    @property
    @abstractmethod
    def inputs(self) -> frozenset[str]:
        """Names of the arrays that the model takes."""

    @abstractmethod
    def prepare(self, batch: Arrays) -> Any:
        """The batch as the engine takes it; arrays that the model doesn't take are left out."""

    @abstractmethod
    def call(self, prepared: Any) -> Any:
        """One forward pass, over when the outputs are there."""

    @abstractmethod
    def arrays(self, outputs: Any) -> dict[str, np.ndarray]:
        """The outputs by name."""

    def run(self, batch: Arrays) -> dict[str, np.ndarray]:
        """Arrays in, arrays out."""
        return self.arrays(self.call(self.prepare(batch)))

    def begin(self, prepared: Any, new_tokens: int) -> Decoding:
        """The pass over the prompt and the first new token, chosen greedily.

        Raises:
            UsageError: CK-B006, the model can't go on from a cache.
        """
        raise no_decoding(self.name)

    def step(self, decoding: Decoding) -> Decoding:
        """One more token."""
        raise no_decoding(self.name)

    def token_array(self, decoding: Decoding) -> np.ndarray:
        """The last token, (B, 1)."""
        raise no_decoding(self.name)

    @abstractmethod
    def details(self) -> dict[str, Any]:
        """What was really used: version, providers, threads, kinds of attention."""


def require(package: str, extra: str) -> ModuleType:
    """The package, imported.

    Raises:
        UsageError: CK-B004.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise UsageError(
            "CK-B004", f"the engine {package} is not installed", why=str(error)[:200], fix=f"pip install {extra}"
        ) from None


def no_decoding(name: str) -> UsageError:
    """The engine or model can't decode."""
    return UsageError(
        "CK-B006",
        f"this model can't write text token by token in {name}",
        fix="decode needs a causal language model: its checkpoint, or both files that `compresskit export` wrote",
    )


def cannot_run(name: str, why: str, fix: str) -> UsageError:
    """The engine can't run the model as asked."""
    return UsageError("CK-B005", f"{name} can't run this model", why=why, fix=fix)


def digest(arrays: Arrays, limit: int | None = None) -> str:
    """sha256 over names, types, shapes and bytes; of the first ``limit`` bytes of each array."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        found.update(content[:limit].data if limit else content.data)
    return found.hexdigest()
