"""The raw samples of a benchmark's record: blocks of slices, which are calls of one arm."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field, model_validator

_SHORTEST, _LONGEST = 1e-7, 1e10  # milliseconds
PART = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)
"""Of every part of a record. Keys that a later minor version added are ignored."""


def _within(times: list[float], least: float) -> bool:
    """All from ``least`` to below the longest. Built-ins only: the parent does this while the models are timed."""
    return not times or (math.isfinite(sum(times)) and min(times) >= least and max(times) < _LONGEST)


class Slice(BaseModel):
    """Consecutive calls of one arm in a block. Lists have one entry a call; times in milliseconds.

    Args:
        position: place in the block's order, from 0.
        flags: involuntary context switches during the call; no sample is deleted for it.
        device_ms: between CUDA events; GPU only.
        first_ms: time to the first token; decode only, where ``wall_ms`` is the whole call.
        token_ms: for each call the times of each further token.
        tokens: non-padding tokens worked on in each call.
    """

    model_config = PART

    arm: str
    position: int
    wall_ms: list[float]
    cpu_ms: list[float]
    flags: list[int] = []
    device_ms: list[float] = []
    first_ms: list[float] = []
    token_ms: list[list[float]] = []
    tokens: list[int] = []
    output_hash: str = ""
    started: float = Field(default=0.0, description="seconds since the run began")
    throttled: bool = False

    @model_validator(mode="after")
    def _times(self) -> Slice:
        timed = [*self.wall_ms, *self.first_ms, *self.device_ms, *(value for row in self.token_ms for value in row)]
        if not self.wall_ms or not _within(timed, _SHORTEST):
            raise ValueError("a slice holds calls, and times are above 0 and finite")
        if not _within(self.cpu_ms, 0.0):
            raise ValueError("CPU times are at least 0 and finite")
        for name in ("cpu_ms", "flags", "device_ms", "first_ms", "token_ms", "tokens"):
            if len(getattr(self, name)) not in (0, len(self.wall_ms)):
                raise ValueError(f"{name} has not one entry a call")
        return self


class Block(BaseModel):
    """Slices of all arms of one cell in a random order, by one set of worker processes.

    Args:
        id: hash of models, cell, environment, replicate and number; what ``--resume`` goes by.
        replicate: which set of processes, as planned.
        process: which set of processes it really was: after a resume another one; the outer level of the bootstrap.
        order: names of arms as they took their turns.
    """

    model_config = PART

    id: str
    cell: str
    replicate: int
    number: int
    process: int = 0
    order: list[str]
    slices: list[Slice]
    load: float | None = Field(default=None, description="load average after the block")
