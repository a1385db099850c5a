"""The record of a benchmark run, ``compresskit.bench/1.0``: figures, verdicts, and the raw samples they came from.

Everything that is printed can be recomputed from ``blocks``. A minor version only adds keys, which readers ignore; a
record of another major version is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from compresskit.bench.blocks import PART, Block
from compresskit.bench.files import read_json_record, write_atomically
from compresskit.errors import DataError

FORMAT = "compresskit.bench/1.0"
_MAJOR = "compresskit.bench/1."
MOST_BYTES = 512 * 2**20

Status = Literal["measured", "derived", "estimated", "unavailable"]
Verdict = Literal["FASTER", "SLOWER", "SAME", "AMBIGUOUS", "INVALID"]
Scenario = Literal["encode", "prefill", "decode", "offline"]
Role = Literal["baseline", "control", "candidate"]


class _Part(BaseModel):
    model_config = PART


class Metric(_Part):
    """One figure. What could not be had is ``unavailable`` with a reason, never 0.

    Args:
        value: in ``unit``; None if unavailable.
        ci: interval of confidence ``level``.
        n: samples that it rests on.
        method: how it was had, such as ``wall``, ``process CPU time``, ``VmHWM``.
        reason: why it is unavailable or estimated.
    """

    value: float | None = None
    unit: str = ""
    ci: tuple[float, float] | None = None
    level: float | None = None
    n: int | None = None
    status: Status = "measured"
    method: str = ""
    reason: str = ""

    @model_validator(mode="after")
    def _value_or_reason(self) -> Metric:
        if self.status == "unavailable":
            if self.value is not None or self.ci is not None or not self.reason:
                raise ValueError("an unavailable metric has a reason, and neither value nor interval")
        elif self.value is None or not math.isfinite(self.value):
            raise ValueError("a metric that isn't unavailable has a finite value")
        return self


def unavailable(unit: str, reason: str, *, n: int | None = None) -> Metric:
    """The metric that could not be had, with the reason."""
    return Metric(unit=unit, status="unavailable", reason=reason, n=n)


class Noise(_Part):
    """What the baseline against itself gave: the smallest difference that this run can tell.

    Args:
        aa_ratio, aa_ci: ratio of the control's p50 to the baseline's, and its interval.
        fit: how fit the machine was.
    """

    aa_ratio: float | None = None
    aa_ci: tuple[float, float] | None = None
    fit: Literal["good", "fair", "poor", "unknown"] = "unknown"
    reasons: list[str] = []


class Environment(_Part):
    """Where the run took place. ``hash`` is over what must be equal for two runs to be compared."""

    hash: str
    cpu: dict[str, Any] = {}
    gpu: list[dict[str, Any]] = []
    memory: dict[str, Any] = {}
    system: dict[str, Any] = {}
    packages: dict[str, str] = {}
    libraries: dict[str, Any] = Field(default={}, description="torch build, BLAS, ONNX Runtime providers in use")
    variables: dict[str, str] = {}
    git_commit: str | None = None
    noise: Noise = Noise()


class Cell(_Part):
    """One shape of work, the same input bytes for every arm.

    Args:
        id: such as ``encode/b1/t128/th1``.
        lengths: non-padding tokens of each row of each input.
        input_hash: sha256 over the inputs' bytes.
        new_tokens: tokens generated per call: several in decode, the first in prefill.
    """

    id: str
    scenario: Scenario
    batch: int
    length: int
    threads: int
    inputs: int = 1
    lengths: list[int] = []
    input_hash: str = ""
    text: str = Field(default="", description="where the inputs come from")
    new_tokens: int | None = None


class Plan(_Part):
    """What was to be done.

    Args:
        headline: id of the cell whose p50 the headline verdict is about.
        stop: the rule; ``stopped_by`` what ended the run: half_width, time, samples, interrupted.
    """

    profile: str
    device: str = "cpu"
    interleave: Literal["block-abba", "block-permutation", "process"] = "block-abba"
    seed: int = 0
    replicates: int = 1
    slice_seconds: float = 0.3
    delta: float = 0.02
    level: float = 0.95
    stop: str = ""
    stopped_by: str = ""
    cells: list[Cell] = []
    headline: str = ""
    task: str | None = None
    data_hash: str | None = None


class ModelInfo(_Part):
    """Which model an arm ran."""

    source: str
    revision: str | None = None
    architecture: str = ""
    files: dict[str, str] = Field(default={}, description="file -> sha256:…")
    fingerprint: str = ""
    compressed: bool = False


class Quality(_Part):
    """How good the outputs of the timed run were on a task.

    Args:
        scores: per example; what intervals are resampled from.
        against: compared with the baseline: paired interval, McNemar's p, flips, KL, worst-class drop.
    """

    task: str
    metric: str
    value: float | None = None
    unit: str = ""
    n: int | None = None
    ci: tuple[float, float] | None = None
    level: float | None = None
    status: Status = "measured"
    reason: str = ""
    scores: list[float] = []
    against: dict[str, Any] = {}
    details: dict[str, Any] = {}


class Arm(_Part):
    """One model in one engine.

    Args:
        name: unique in the record.
        metrics: what doesn't depend on the shape of work (size, parameters, cold start, energy), and the memory of each
            phase.
        cells: cell id -> metric name -> figure: ``latency.p50``, ``latency.p99``, ``throughput.tokens`` and so on.
        parts: rows of the model's profile: path, kind, parameters, bytes, milliseconds, layers.
        recipe: hash of the recipe that made the model.
        steps: what the recipe's steps did to size and error, as its report says.
    """

    name: str
    role: Role = "candidate"
    engine: str = "torch"
    dtype: str = ""
    model: ModelInfo
    recipe: str | None = None
    metrics: dict[str, Metric] = {}
    cells: dict[str, dict[str, Metric]] = {}
    quality: Quality | None = None
    parts: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    engine_details: dict[str, Any] = {}
    error: str | None = Field(default=None, description="why the arm could not be run; then it has no cells")

    def metric(self, name: str, cell: str) -> Metric:
        """The figure ``name`` of ``cell``, else the one that holds for all cells, else unavailable."""
        found = self.cells.get(cell, {}).get(name) or self.metrics.get(name)
        return found or unavailable("", "it was not measured")


class Guard(_Part):
    """A second estimate of the same ratio, by what is less disturbed by other work."""

    ratio: float
    ci: tuple[float, float] | None = None


class Comparison(_Part):
    """Arm ``b`` against arm ``a``, the baseline: ``ratio`` is b's time over a's, so below 1 is faster.

    Args:
        p: two-sided, adjusted by Holm over all rows but the headline; ``p_raw`` without that.
        guards: wall_min, cpu_time.
        beyond_noise: the gain is larger than what the control showed.
        decided_by: whose interval the verdict goes by: wall, or cpu_time where the wall clock was disturbed.
    """

    a: str
    b: str
    cell: str
    metric: str = "latency.p50"
    ratio: float | None
    ci: tuple[float, float] | None
    level: float = 0.95
    p: float | None = None
    p_raw: float | None = None
    guards: dict[str, Guard] = {}
    verdict: Verdict
    reason: str = ""
    headline: bool = False
    control: bool = False
    beyond_noise: bool | None = None
    decided_by: str = "wall"


class Notice(_Part):
    """Something that the reader has to know before the figures."""

    code: str
    text: str


class NotMeasured(_Part):
    """What the run left out, and why."""

    what: str
    why: str


class Record(_Part):
    """All of one run."""

    format: str = Field(default=FORMAT, alias="schema")
    id: str = ""
    complete: bool
    created: str
    version: str = Field(default="", description="of compresskit")
    command: list[str] = Field(default=[], description="what reproduces it, paths shortened")
    env: Environment
    plan: Plan
    arms: list[Arm]
    comparisons: list[Comparison] = []
    blocks: list[Block] = []
    samples_ref: str | None = Field(
        default=None, description="the .jsonl beside this file that holds the blocks as well"
    )
    warnings: list[Notice] = []
    not_measured: list[NotMeasured] = []
    parent_cpu_share: float | None = Field(default=None, description="CPU time of the parent over the measuring time")

    def arm(self, name: str) -> Arm:
        """The arm called ``name``; KeyError without one."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)

    @property
    def baseline(self) -> Arm:
        """The arm that the others are compared with."""
        return next(arm for arm in self.arms if arm.role == "baseline")

    @property
    def headline(self) -> Comparison | None:
        """The one comparison that isn't corrected for others."""
        return next((row for row in self.comparisons if row.headline), None)

    @property
    def cell_by_id(self) -> dict[str, Cell]:
        """The cells of the plan."""
        return {cell.id: cell for cell in self.plan.cells}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with ``schema`` first."""
        return self.model_dump(mode="json", by_alias=True)

    def with_id(self) -> Record:
        """The same with ``id`` set to the hash of everything else."""
        content = {key: value for key, value in self.to_dict().items() if key != "id"}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
        return self.model_copy(update={"id": f"sha256:{digest}"})


def write(record: Record, path: Path) -> Record:
    """Put ``record`` into ``path``: all of it or what was there before. Gives it with its ``id``."""
    identified = record.with_id()
    write_atomically(path, json.dumps(identified.to_dict(), allow_nan=False) + "\n")
    return identified


def read(path: Path) -> Record:
    """The record in ``path``.

    Raises:
        DataError: CK-B010, it is no record, damaged, too large, or of another major version.
    """
    content = read_json_record(path, MOST_BYTES)
    name = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(name, str) or not name.startswith(_MAJOR):
        raise _no_record(path, f"its schema is {name!r:.60}, and this compresskit reads {_MAJOR}x")
    try:
        return Record.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:200]
        raise _no_record(path, f"{place}: {first['msg']}"[:300]) from None


def _no_record(path: Path, why: str) -> DataError:
    from compresskit.checkpoint.files import printable

    return DataError(
        "CK-B010",
        "the file is no benchmark record",
        where=printable(path),
        why=printable(why, 300),
        fix="give a file that `compresskit bench run -o` wrote",
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a record; ``bench/schema.json`` holds it."""
    schema = Record.model_json_schema(by_alias=True, mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "compresskit benchmark record",
    }
