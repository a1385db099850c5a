"""How much memory a process took: the kernel's high-water mark, reset before each phase; device memory by three counts.

A sampled peak misses what lies between two samples; ``VmHWM`` doesn't.
"""

from __future__ import annotations

import re
from pathlib import Path

_MIB = 1024.0  # the kernel counts in KiB


def reset_peak() -> bool:
    """Set the process's high-water mark to what it now holds; False where the system doesn't allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_mib() -> float | None:
    """High-water mark of resident memory since ``reset_peak``, MiB; None where the system doesn't tell."""
    return _status("VmHWM")


def resident_mib() -> float | None:
    """Resident memory now, MiB."""
    return _status("VmRSS")


def proportional_mib() -> float | None:
    """Resident memory now, MiB; pages that n processes share (mapped weights) count 1/n."""
    return _field(Path("/proc/self/smaps_rollup"), "Pss")


def _status(name: str) -> float | None:
    return _field(Path("/proc/self/status"), name)


def _field(path: Path, name: str) -> float | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / _MIB if found else None


class DeviceMemory:
    """Peak memory of the CUDA device: torch's allocator, what it reserved, and what the driver says of this process."""

    def reset(self) -> None:
        """Begin a phase."""
        import torch

        torch.cuda.reset_peak_memory_stats()

    def peaks_mib(self) -> dict[str, float | None]:
        """``allocated``, ``reserved`` and ``driver`` since ``reset``; the driver's is of now."""
        import torch

        return {
            "allocated": torch.cuda.max_memory_allocated() / 2**20,
            "reserved": torch.cuda.max_memory_reserved() / 2**20,
            "driver": _driver_mib(),
        }


def _driver_mib() -> float | None:
    """Bytes that NVML counts for this process; None without pynvml."""
    import os

    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return float(process.usedGpuMemory) / 2**20
    except pynvml.NVMLError:
        return None
    return None
