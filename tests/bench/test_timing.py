"""Calls are timed one by one, inputs take turns, the garbage collector rests meanwhile."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compresskit.bench.engines.base import Decoding, Engine, Settings
from compresskit.bench.timing import time_calls, time_decoding


class Sleeper(Engine):
    """Sleeps 2 ms a call and 1 ms a token, and notes what it was given."""

    name = "sleeper"
    package = "none"

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.collecting: list[bool] = []

    def load(self, path: Path, settings: Settings) -> None:
        return

    @property
    def inputs(self) -> frozenset[str]:
        return frozenset()

    def prepare(self, batch: Mapping[str, np.ndarray]) -> Any:
        return batch

    def call(self, prepared: Any) -> Any:
        self.seen.append(prepared)
        self.collecting.append(gc.isenabled())
        time.sleep(0.002)
        return prepared

    def arrays(self, outputs: Any) -> dict[str, np.ndarray]:
        return {"x": np.array([outputs])}

    def begin(self, prepared: Any, new_tokens: int) -> Decoding:
        time.sleep(0.002)
        return Decoding(np.zeros((1, 1)), 0)

    def step(self, decoding: Decoding) -> Decoding:
        time.sleep(0.001)
        return Decoding(decoding.token + 1, decoding.state + 1)

    def token_array(self, decoding: Decoding) -> np.ndarray:
        return np.asarray(decoding.token)

    def details(self) -> dict[str, Any]:
        return {}


def test_calls_are_timed_and_inputs_take_turns() -> None:
    engine = Sleeper()
    samples, output = time_calls(engine, [10, 11, 12], [5, 6, 7], calls=4, start=2, warm=1)
    assert engine.seen == [12, 12, 10, 11, 12]
    assert samples.tokens == [7, 5, 6, 7]
    assert min(samples.wall_ms) >= 2.0
    assert max(samples.cpu_ms) < 2.0
    assert len(samples.flags) == 4
    assert samples.device_ms == []
    assert output == time_calls(engine, [12], [7], calls=1, start=0, warm=0)[1]
    assert not any(engine.collecting)
    assert gc.isenabled()


def test_each_token_is_timed() -> None:
    samples, _ = time_decoding(Sleeper(), [0], [5], calls=3, start=0, warm=1, new_tokens=4)
    assert [len(row) for row in samples.token_ms] == [3, 3, 3]
    for whole, first, tokens in zip(samples.wall_ms, samples.first_ms, samples.token_ms, strict=True):
        assert first >= 2.0
        assert min(tokens) >= 1.0
        assert first + sum(tokens) == pytest.approx(whole, abs=0.5)
    assert samples.tokens == [9, 9, 9]
    content = samples.to_dict()
    assert content["wall_ms"] == [round(value, 4) for value in samples.wall_ms]


def test_the_collector_comes_back_after_an_error() -> None:
    engine = Sleeper()
    with pytest.raises(ZeroDivisionError):
        time_calls(engine, [], [], calls=1, start=0, warm=0)
    assert gc.isenabled()
