"""From raw blocks to figures: pure functions, so that every number can be computed anew from a record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from compresskit.bench.blocks import Block, Slice
from compresskit.bench.record import Cell, Metric, unavailable
from compresskit.numerics.statistics import least_samples, quantile, quantile_interval

SAFETY = 0.99
"""How surely enough samples for a percentile must be there."""

LEAST = 1e-6
"""Milliseconds that a statistic counts at least as: CPU clocks may be coarser than a call."""

_QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
Floats = NDArray[np.float64]


def slices_of(blocks: Iterable[Block], cell: str, arm: str) -> list[Slice]:
    """The slices of ``arm`` in ``cell``, in the order in which they ran."""
    return [part for block in blocks if block.cell == cell for part in block.slices if part.arm == arm]


def metrics_of(blocks: Sequence[Block], cell: Cell, arm: str, *, level: float = 0.95) -> dict[str, Metric]:
    """All figures of one arm at one shape of work."""
    slices = slices_of(blocks, cell.id, arm)
    wall = _joined(slices, "wall_ms")
    if not len(wall):
        return {"latency.p50": unavailable("ms", "no block was finished")}
    found = quantiles("latency", wall, "wall", level)
    found["latency.cpu_p50"] = _quantile("p50", 0.5, _joined(slices, "cpu_ms"), "process CPU time", level)
    flags = np.concatenate([np.asarray(part.flags, dtype=np.int64) for part in slices]) if slices else np.zeros(0)
    found["samples.flagged"] = Metric(
        value=int((flags > 0).sum()), unit="samples", n=len(wall), method="involuntary context switches"
    )
    clean = wall[flags == 0] if len(flags) == len(wall) else wall
    found["latency.p50_unflagged"] = _quantile("p50", 0.5, clean, "wall, samples without a context switch", level)
    device = _joined(slices, "device_ms")
    if len(device):
        found |= quantiles("latency.device", device, "CUDA events", level)
    if cell.scenario == "decode":
        found |= _decoding(slices, cell, level)
    seconds = wall.sum() / 1e3
    tokens = int(_joined(slices, "tokens").sum())
    found["throughput.samples"] = Metric(
        value=cell.batch * len(wall) / seconds, unit="1/s", n=len(wall), status="derived", method="rows over wall time"
    )
    found["throughput.tokens"] = Metric(
        value=tokens / seconds, unit="tokens/s", n=tokens, status="derived", method="non-padding tokens over wall time"
    )
    return found


def quantiles(prefix: str, samples: Floats, method: str, level: float) -> dict[str, Metric]:
    """``prefix.p10`` to ``prefix.p99`` with order-statistic intervals, as far as the samples bear them; the least."""
    found = {f"{prefix}.{name}": _quantile(name, q, samples, method, level) for name, q in _QUANTILES.items()}
    found[f"{prefix}.min"] = Metric(value=float(samples.min()), unit="ms", n=len(samples), method=method)
    return found


def _quantile(name: str, q: float, samples: Floats, method: str, level: float) -> Metric:
    needed = least_samples(max(q, 1 - q), SAFETY)
    if len(samples) < needed:
        return unavailable("ms", f"{name} needs {needed} samples, there are {len(samples)}", n=len(samples))
    ci = quantile_interval(samples, q, level)
    return Metric(
        value=quantile(samples, q), unit="ms", ci=ci, level=level if ci else None, n=len(samples), method=method
    )


def _decoding(slices: Sequence[Slice], cell: Cell, level: float) -> dict[str, Metric]:
    tokens = token_times(slices)
    found = quantiles("latency.token", tokens, "wall, each token timed", level)
    found |= quantiles("latency.first_token", _joined(slices, "first_ms"), "wall, prompt and first token", level)
    if len(tokens):
        found["throughput.generated"] = Metric(
            value=1e3 * cell.batch * len(tokens) / float(tokens.sum()),
            unit="tokens/s",
            n=len(tokens),
            status="derived",
            method="tokens after the first over their wall time",
        )
    return found


def token_times(slices: Sequence[Slice]) -> Floats:
    """Times of all tokens after the first, ms."""
    return np.array([value for part in slices for row in part.token_ms for value in row], dtype=np.float64)


def _joined(slices: Sequence[Slice], name: str) -> Floats:
    return np.array([value for part in slices for value in getattr(part, name)], dtype=np.float64)


Statistic = Callable[[Sequence[Slice]], float]


def log_ratios(blocks: Sequence[Block], cell: str, a: str, b: str, statistic: Statistic) -> list[Floats]:
    """log(b / a) of each block's statistic, grouped by set of processes."""
    groups: dict[int, list[float]] = {}
    for block in blocks:
        if block.cell != cell:
            continue
        left = [part for part in block.slices if part.arm == a]
        right = [part for part in block.slices if part.arm == b]
        if left and right:
            groups.setdefault(block.process, []).append(
                math.log(max(statistic(right), LEAST) / max(statistic(left), LEAST))
            )
    return [np.array(groups[key]) for key in sorted(groups)]


def disturbed_share(blocks: Sequence[Block], cell: str, arms: Sequence[str]) -> float:
    """Share of samples of ``arms`` that other processes interrupted."""
    flags = np.concatenate([_joined(slices_of(blocks, cell, arm), "flags") for arm in arms])
    return float((flags > 0).mean()) if len(flags) else 0.0


def headline_statistic(cell: Cell) -> tuple[str, Statistic]:
    """What a cell's verdict is about: the median call, or the median token where text is written."""
    if cell.scenario == "decode":
        return "latency.token.p50", lambda slices: float(np.median(token_times(slices)))
    return "latency.p50", lambda slices: float(np.median(_joined(slices, "wall_ms")))


def guard_statistics(cell: Cell, *, device: str) -> dict[str, Statistic]:
    """Second witnesses. CPU time sums over threads and counts spinning, so it is one only for a single thread."""
    found: dict[str, Statistic] = {"wall_min": lambda slices: float(_joined(slices, "wall_ms").min())}
    if device != "cpu":
        found["device"] = lambda slices: float(np.median(_joined(slices, "device_ms")))
    elif cell.threads == 1:
        found["cpu_time"] = lambda slices: float(np.median(_joined(slices, "cpu_ms")))
    return found
