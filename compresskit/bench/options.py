"""What a run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from compresskit.bench.record import Scenario
from compresskit.bench.schedule import PROFILES, Profile
from compresskit.errors import UsageError

SCENARIOS: tuple[Scenario, ...] = ("encode", "prefill", "decode", "offline")


@dataclass(frozen=True)
class BenchOptions:
    """Options of ``bench run``. Several threads, scenarios, batches or lengths make a cell of each combination.

    Args:
        models: checkpoints, hub ids, ``.onnx`` files; ``ENGINE=MODEL`` chooses an engine for one.
        baseline: what the others are compared with; the first model by default.
        scenarios: by default ``decode`` for a model that writes text, else ``encode``.
        lengths: tokens of a row; by default 128, or what the model takes.
        new_tokens: that ``decode`` writes.
        control: measure the baseline twice.
        onnx: measure ONNX Runtime's float32 beside torch's; by default in standard and publish on the CPU.
        energy: count joules; by default in publish.
        interleave: ``process`` loads one model at a time; ``auto`` does so if they don't fit together.
        full_env: host, user and folders in clear.
        details: memory, parameters, operations, parity; without them only the time is measured.
        custom: a profile of one's own instead of ``profile``.
        max_blocks: at most so many blocks of each set of processes and cell.
    """

    models: tuple[str, ...]
    baseline: str | None = None
    profile: str = "quick"
    device: str = "cpu"
    dtype: str | None = None
    threads: tuple[int, ...] = (1,)
    scenarios: tuple[Scenario, ...] = ()
    engine: str | None = None
    batches: tuple[int, ...] = (1,)
    lengths: tuple[int, ...] = ()
    new_tokens: int = 32
    seed: int = 0
    delta: float = 0.02
    level: float = 0.95
    control: bool = True
    onnx: bool | None = None
    energy: bool | None = None
    interleave: Literal["auto", "resident", "process"] = "auto"
    full_env: bool = False
    task: str | None = None
    data: Path | None = None
    samples: int | None = None
    task_options: dict[str, Any] = field(default_factory=dict)
    details: bool = True
    custom: Profile | None = None
    max_blocks: int | None = None

    def __post_init__(self) -> None:
        _require(bool(self.models), "CK-B001", "there is nothing to measure", "give a model")
        _require(
            self.profile in PROFILES,
            "CK-B017",
            f"there is no profile {self.profile!r}",
            f"profiles: {', '.join(PROFILES)}",
        )
        _require(self.device in ("cpu", "cuda"), "CK-B017", f"there is no device {self.device!r}", "cpu or cuda")
        for name in self.scenarios:
            _require(
                name in SCENARIOS, "CK-B017", f"there is no scenario {name!r}", f"scenarios: {', '.join(SCENARIOS)}"
            )
        counts = (*self.threads, *self.batches, *self.lengths, self.new_tokens)
        _require(min(counts) >= 1, "CK-B017", "threads, batch, length and new tokens are at least 1", "give 1 or more")
        _require(self.new_tokens >= 2, "CK-B017", "decode writes at least 2 tokens", "--new-tokens 2 or more")
        _require((self.task is None) == (self.data is None), "CK-B017", "--task and --data go together", "give both")
        if self.task is not None and self.data is not None:
            _check_task(self.task, self.data)

    @property
    def stop(self) -> Profile:
        """How long and how often."""
        return self.custom or PROFILES[self.profile]

    def asks_for(self, part: str) -> bool:
        """Whether an optional part (``onnx``, ``energy``) is to be done."""
        chosen: bool | None = getattr(self, part)
        if chosen is not None:
            return chosen
        return self.profile == "publish" if part == "energy" else self.profile != "quick" and self.device == "cpu"


def _require(condition: bool, code: str, what: str, fix: str) -> None:
    if not condition:
        raise UsageError(code, what, fix=fix)


def _check_task(task: str, data: Path) -> None:
    """Look both up before anything is measured.

    Raises:
        RecipeError: CK-R033, no such task.
        DataError: CK-D001, no such file.
    """
    from compresskit.tasks import named

    named(task).look_for(data)
