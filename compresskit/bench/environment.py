"""Where a run took place, as far as it may change a figure. Host, user and folders are hashed unless asked for."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import re
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from compresskit.bench.record import Environment

_PACKAGES = (
    "compresskit", "torch", "transformers", "tokenizers", "safetensors", "numpy", "onnx", "onnxruntime",
    "onnxruntime-gpu",
    "openvino", "accelerate", "bitsandbytes", "torchao", "nncf",
)  # fmt: skip
_VARIABLES = re.compile(r"^(OMP|MKL|KMP|OPENBLAS|ORT|OV|CUDA|TORCH|ATEN|MALLOC|LD_PRELOAD|GOMP)")
_CPU = Path("/sys/devices/system/cpu")
_IDLE = 1
_IDENTITY = ("model", "logical", "physical", "architecture", "flags")


def capture(*, device: str, full: bool = False) -> Environment:
    """The environment now.

    Args:
        full: host name, user and folders in clear instead of hashed.
    """
    cpu, gpu = processor(), devices() if device != "cpu" else []
    packages = {name: found for name in _PACKAGES if (found := _version(name))}
    system = {
        "os": platform.platform(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "container": Path("/.dockerenv").exists() or "container" in os.environ,
        "host": _private(socket.gethostname(), full),
        "user": _private(_user(), full),
        "folder": _private(str(Path.cwd()), full),
    }
    identity = {
        "cpu": {name: cpu.get(name) for name in _IDENTITY},
        "gpu": [{name: item.get(name) for name in ("name", "driver")} for item in gpu],
        "packages": packages,
        "python": system["python"],
        "kernel": system["kernel"],
        "device": device,
    }
    memory = psutil.virtual_memory()
    return Environment(
        hash=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        cpu=cpu,
        gpu=gpu,
        memory={
            "total_bytes": memory.total,
            "available_bytes": memory.available,
            "swap_bytes": psutil.swap_memory().used,
        },
        system=system,
        packages=packages,
        libraries=_libraries(),
        variables={
            name: _private(value, full) if os.sep in value else value  # a path may name the user
            for name, value in sorted(os.environ.items())
            if _VARIABLES.match(name)
        },
        git_commit=_commit(),
    )


def processor() -> dict[str, Any]:
    """Model, cores, quota, frequency, governor, load, steal: what is known of it."""
    text = _text(Path("/proc/cpuinfo"))
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    frequency = psutil.cpu_freq()
    temperatures = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    return {
        "model": name[1] if name else platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "flags": hashlib.sha256(flags[1].encode()).hexdigest()[:16] if flags else None,
        "physical": psutil.cpu_count(logical=False),
        "logical": psutil.cpu_count(),
        "allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "quota": _quota(),
        "governor": _text(_CPU / "cpu0/cpufreq/scaling_governor").strip() or None,
        "turbo": _turbo(),
        "mhz": {"now": frequency.current, "min": frequency.min, "max": frequency.max} if frequency else None,
        "temperature": max((item.current for group in temperatures.values() for item in group), default=None),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "steal_percent": getattr(psutil.cpu_times_percent(interval=None), "steal", None),
    }


def devices() -> list[dict[str, Any]]:
    """CUDA devices: name, memory, and from NVML driver, clocks, power, throttle reasons, other processes."""
    import torch

    found: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "memory_bytes": properties.total_memory,
                "compute_capability": f"{properties.major}.{properties.minor}",
                **_nvml(index),
            }
        )
    return found


def _nvml(index: int) -> dict[str, Any]:
    try:
        import pynvml
    except ImportError:
        return {"nvml": "not installed"}
    wanted = {
        "driver": lambda handle: pynvml.nvmlSystemGetDriverVersion(),
        "clock_sm_mhz": lambda handle: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "clock_sm_max_mhz": lambda handle: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "power_limit_w": lambda handle: pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1e3,
        "temperature": lambda handle: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "throttle_reasons": lambda handle: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        "mig": lambda handle: pynvml.nvmlDeviceGetMigMode(handle)[0],
        "ecc": lambda handle: pynvml.nvmlDeviceGetEccMode(handle)[0],
        "other_processes": lambda handle: sum(
            process.pid != os.getpid() for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        ),
    }
    found: dict[str, Any] = {}
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError as error:
        return {"nvml": str(error)}
    for name, get in wanted.items():
        try:
            value = get(handle)
            found[name] = value.decode() if isinstance(value, bytes) else value
        except pynvml.NVMLError:
            found[name] = None
    return found


def throttled(device: str) -> bool:
    """Whether the CUDA device now runs slower than it could, for another reason than idleness; False on a CPU."""
    if device == "cpu":
        return False
    reasons = _nvml(0).get("throttle_reasons")
    return bool(isinstance(reasons, int) and reasons & ~_IDLE)


def _private(text: str, full: bool) -> str:
    return text if full else "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return str(os.getuid()) if hasattr(os, "getuid") else ""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _libraries() -> dict[str, Any]:
    import torch

    parallel = torch.__config__.parallel_info()
    blas = re.search(r"BLAS_INFO=([^,\s]+)", torch.__config__.show())
    threading = re.search(r"ATen parallel backend: (.+)", parallel)
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "blas": blas[1] if blas else None,
        "threading": threading[1] if threading else None,
        "mkldnn": torch.backends.mkldnn.is_available(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _quota() -> float | None:
    parts = _text(Path("/sys/fs/cgroup/cpu.max")).split()
    return int(parts[0]) / int(parts[1]) if len(parts) == 2 and parts[0].isdigit() else None


def _turbo() -> bool | None:
    boost, off = _text(_CPU / "cpufreq/boost").strip(), _text(_CPU / "intel_pstate/no_turbo").strip()
    if boost:
        return boost == "1"
    return off == "0" if off else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _commit() -> str | None:
    """The commit of this package's own repository, where it runs from one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
