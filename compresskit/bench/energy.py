"""Energy, where a counter counts it: RAPL for the processor's package, NVML for the device. Never estimated."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")
SECONDS = 30.0
"""Least time to count over: sensors see a device's power for a quarter of the time (arXiv 2312.02741)."""


@dataclass(frozen=True)
class Counter:
    """A running count of joules.

    Args:
        wraps: joules after which it starts again from 0; None if it doesn't.
    """

    name: str
    read: Callable[[], float]
    wraps: float | None = None

    def difference(self, before: float, after: float) -> float:
        """Joules between two readings, at most one wrap apart."""
        return after - before if after >= before or self.wraps is None else after + self.wraps - before


@dataclass(frozen=True)
class Energy:
    """Joules of a call, with what the machine takes anyway subtracted; watts while idle."""

    joules_per_call: float
    idle_watts: float
    calls: int
    seconds: float


def counter(device: str, root: Path = _POWERCAP) -> tuple[Counter | None, str]:
    """The counter for ``device``, or None and why there is none."""
    return _rapl(root) if device == "cpu" else _nvml()


def _rapl(root: Path) -> tuple[Counter | None, str]:
    packages = sorted(root.glob("*-rapl:[0-9]"))
    if not packages:
        return None, "no RAPL counter on this machine"
    try:
        wraps = sum(int((path / "max_energy_range_uj").read_text()) for path in packages) / 1e6
        _read_rapl(packages)
    except (OSError, ValueError):
        return None, "the RAPL counter may not be read"
    return Counter("RAPL package", lambda: _read_rapl(packages), wraps), ""


def _read_rapl(packages: list[Path]) -> float:
    return sum(int((path / "energy_uj").read_text()) for path in packages) / 1e6


def _nvml() -> tuple[Counter | None, str]:
    try:
        import pynvml
    except ImportError:
        return None, "pynvml is not installed"
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        return None, f"the device counts no energy: {error}"
    return Counter("NVML total energy", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3), ""


def measure(
    found: Counter,
    run: Callable[[], int],
    *,
    seconds: float = SECONDS,
    idle: float = SECONDS / 3,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Energy:
    """Count while idle, then while ``run`` (which gives its number of calls) is called again for ``seconds``."""
    began, first = clock(), found.read()
    sleep(idle)
    watts = found.difference(first, found.read()) / max(clock() - began, 1e-9)
    began, first, calls = clock(), found.read(), 0
    while clock() - began < seconds:
        calls += run()
    spent = clock() - began
    joules = found.difference(first, found.read()) - watts * spent
    return Energy(joules / max(calls, 1), watts, calls, spent)
