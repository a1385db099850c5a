"""Timing calls in a worker: wall clock, CPU time of the process, involuntary context switches, CUDA events."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from compresskit.bench.engines.base import Decoding, Engine, digest

MOST_HASHED = 2**20


@contextmanager
def collected() -> Iterator[None]:
    """No garbage collection inside. ``settle`` was called before, so that collections between slices are quick."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def settle() -> None:
    """Leave everything that now lives out of later garbage collections: a full one takes a tenth of a second."""
    gc.collect()
    gc.freeze()


class Samples:
    """Lists as in ``blocks.Slice``, filled call by call."""

    def __init__(self) -> None:
        self.wall_ms: list[float] = []
        self.cpu_ms: list[float] = []
        self.flags: list[int] = []
        self.device_ms: list[float] = []
        self.first_ms: list[float] = []
        self.token_ms: list[list[float]] = []
        self.tokens: list[int] = []

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, times rounded to 0.1 microseconds."""
        content = dict(vars(self))
        for name in ("wall_ms", "cpu_ms", "device_ms", "first_ms"):
            content[name] = [round(value, 4) for value in content[name]]
        content["token_ms"] = [[round(value, 4) for value in row] for row in self.token_ms]
        return content


def time_calls(
    engine: Engine, prepared: list[Any], tokens: list[int], *, calls: int, start: int, warm: int
) -> tuple[Samples, str]:
    """``calls`` forward passes over ``prepared`` inputs in turn, from number ``start``; gives the last output's hash.

    Args:
        tokens: non-padding tokens of each input.
        warm: calls before, which are not timed: another arm had the caches in the meantime.
    """
    samples = Samples()
    events = _events() if engine.on_device else None
    with collected():
        for number in range(warm):
            engine.call(prepared[(start + number) % len(prepared)])
        output = None
        for number in range(calls):
            index = (start + number) % len(prepared)
            inputs = prepared[index]
            output = None  # what the last call gave is freed outside the timed part
            output = _time(samples, lambda inputs=inputs: engine.call(inputs), events)  # type: ignore[misc]
            samples.tokens.append(tokens[index])
        return samples, digest(engine.arrays(output), MOST_HASHED)


def time_decoding(
    engine: Engine, prepared: list[Any], tokens: list[int], *, calls: int, start: int, warm: int, new_tokens: int
) -> tuple[Samples, str]:
    """Like ``time_calls``, writing ``new_tokens`` tokens; each token is timed on the one run that writes it."""
    samples = Samples()
    last: list[Any] = []

    def write(inputs: Any, first: list[float], steps: list[float]) -> Decoding:
        before = time.perf_counter_ns()
        decoding = engine.begin(inputs, new_tokens)
        now = time.perf_counter_ns()
        first.append((now - before) * 1e-6)
        for _ in range(new_tokens - 1):
            before = now
            decoding = engine.step(decoding)
            now = time.perf_counter_ns()
            steps.append((now - before) * 1e-6)
        return decoding

    events = _events() if engine.on_device else None
    with collected():
        for number in range(warm):
            write(prepared[(start + number) % len(prepared)], [], [])
        for number in range(calls):
            index = (start + number) % len(prepared)
            steps: list[float] = []
            inputs = prepared[index]
            decoding = _time(samples, lambda inputs=inputs, steps=steps: write(inputs, samples.first_ms, steps), events)  # type: ignore[misc]
            samples.token_ms.append(steps)
            samples.tokens.append(tokens[index] + new_tokens * decoding.token.shape[0])
            last = [decoding]
        return samples, digest({"token": engine.token_array(last[0])})


def _time(samples: Samples, call: Callable[[], Any], events: Any) -> Any:
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    if events is not None:
        events[0].record()
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    output = call()
    wall_end, cpu_end = time.perf_counter_ns(), time.process_time_ns()
    if events is not None:
        events[1].record()
        events[1].synchronize()
        samples.device_ms.append(events[0].elapsed_time(events[1]))
    samples.wall_ms.append((wall_end - wall) * 1e-6)
    samples.cpu_ms.append((cpu_end - cpu) * 1e-6)
    samples.flags.append(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches)
    return output


def _events() -> tuple[Any, Any]:
    import torch

    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
