"""Axes: from a figure to a place, and where the ticks go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

LOG_FROM = 6.0


@dataclass(frozen=True)
class Axis:
    """A scale between figures and pixels.

    Args:
        low, high: the figures at its ends, low < high; positive if ``log``.
        start, end: the pixels of ``low`` and ``high``; start > end where the axis runs upwards.
        log: logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of ``value``; what lies outside is put at the edge."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About ``count`` round figures within the axis, in order."""
        if not self.log:
            return _linear_ticks(self.low, self.high, count)
        for multiples in ((1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
            found = _log_ticks(self.low, self.high, multiples)
            if len(found) <= count:
                break
        if len(found) > count:
            found = found[:: math.ceil(len(found) / count)]
        return found if len(found) >= 2 else _linear_ticks(self.low, self.high, count)


def axis_over(
    values: Sequence[float], start: float, end: float, *, margin: float = 0.08, log: bool | None = None
) -> Axis:
    """An axis that holds ``values`` with a margin; logarithmic by itself where they span more than a factor of six.

    Args:
        values: at least one; if ``log`` is True, or where all are positive, they may decide for a logarithm.
        log: force the kind.
    """
    low, high = min(values), max(values)
    if log is None:
        log = low > 0 and high / low > LOG_FROM
    if log:
        factor = max((high / low) ** margin, 1.02)
        return Axis(low / factor, high * factor, start, end, log=True)
    room = max((high - low) * margin, abs(high) * 0.01, 1e-12)
    floor = low - room
    return Axis(0.0 if floor < 0 <= low else floor, high + room, start, end)


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / max(1, count)
    if not raw > 0 or not math.isfinite(raw):
        return []
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((power * multiple for multiple in (1, 2, 2.5, 5, 10) if power * multiple >= raw), power * 10)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, min(last, first + 4 * count) + 1)]


def _log_ticks(low: float, high: float, multiples: Sequence[float]) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = (multiple * 10.0**power for power in powers for multiple in multiples)
    return [tick for tick in every if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def tick_label(value: float, ticks: Sequence[float]) -> str:
    """``value`` with as many digits as tell the ticks apart."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    gaps = [abs(b - a) for a, b in pairwise(ticks) if b != a]
    step = min(gaps, default=abs(value))
    digits = max(0, min(6, -math.floor(math.log10(step) + 1e-9)))
    shown = f"{value:.{digits}f}"
    if round(step * 10**digits) % 1 or abs(round(step, digits) - step) > 1e-9 * step:
        shown = f"{value:.{digits + 1}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown and len(gaps) and max(gaps) > 2 * step else shown
