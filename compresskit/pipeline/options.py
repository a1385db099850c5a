"""How a run is to be done, and who hears of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compresskit.pipeline.plan import Plan


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: none of it changes the result of a finished run, but for seed and device.

    With ``low_memory`` one block of the model is in memory at a time. The weights are those of any other run; the
    result isn't run, and methods that look at more than one block are refused.
    """

    overwrite: bool = False
    resume: bool = False
    strict: bool = False
    max_drop: float | None = None
    device: str = "cpu"
    dtype: str | None = None
    threads: int | None = None
    seed: int = 0
    revision: str | None = None
    trust_remote_code: bool = False
    low_memory: bool = False


@dataclass(frozen=True)
class Listener:
    """Who is told about a run while it goes on."""

    plan: Callable[[Plan], None] = lambda plan: None
    progress: Callable[[float, str], None] = lambda share, what: None
    step: Callable[[dict[str, Any]], None] = lambda row: None
