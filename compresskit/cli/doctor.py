"""``compresskit doctor``: can this machine do the work, and what would make it better?"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output, table
from compresskit.errors import ResourceError

Level = Literal["ok", "note", "warn", "fail"]

_SHOWN_FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
_INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
_CGROUP = Path("/sys/fs/cgroup")
_ENOUGH_MEMORY = 4 * 2**30
_ENOUGH_DISK = 5 * 10**9


@dataclass(frozen=True)
class Verdict:
    """One line of the diagnosis: ``fix`` says what to do about it."""

    level: Level
    what: str
    fix: str = ""


def doctor(json: option.Json = False) -> None:
    """Check versions, processor, memory, disk and load, and say what to do about each finding."""
    facts = {"versions": versions(), "machine": machine()}
    verdicts = [*_version_verdicts(facts["versions"]), *_machine_verdicts(facts["machine"])]
    data = {**facts, "verdicts": [asdict(item) for item in verdicts]}
    rows = ((item.level, item.what, item.fix) for item in verdicts)
    Output(json=json).result(data, table(("", "", ""), rows))
    if any(item.level == "fail" for item in verdicts):
        raise typer.Exit(ResourceError.exit_code)


def versions() -> dict[str, dict[str, Any]]:
    """Installed version, lowest accepted one, and extra, of every direct dependency."""
    found: dict[str, dict[str, Any]] = {}
    for line in _requirements():
        match = re.match(r"([A-Za-z0-9_.-]+)[^;]*?(?:>=([0-9][0-9.]*))?(?:\s*;\s*extra\s*==\s*['\"](.+?)['\"])?$", line)
        if match is None:
            continue
        name, floor, extra = match.groups()
        entry = found.setdefault(name, {"installed": _installed(name), "needs": floor, "extras": []})
        if extra:
            entry["extras"].append(extra)
    return found


def _requirements() -> list[str]:
    try:
        return sorted(requires("compresskit") or [], key=lambda line: "extra" in line)
    except PackageNotFoundError:
        return []


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Processor, cores, threads, memory, disk, load, accelerator."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    limit = _cgroup_number("memory.max")
    name, flags = _processor()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": name,
        "flags": [flag for flag in _SHOWN_FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "cpu_quota": _cpu_quota(),
        "threads": torch.get_num_threads(),
        "memory_bytes": min(memory.total, limit) if limit else memory.total,
        "memory_available_bytes": memory.available,
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "load_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def _processor() -> tuple[str, set[str]]:
    """The processor's name and instruction set flags, where the system tells them."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(errors="replace") if path.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine(), set(flags[1].split() if flags else ())


def _cgroup_number(file: str) -> int | None:
    path = _CGROUP / file
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None


def _cpu_quota() -> float | None:
    """Cores that the container may use, None without a limit."""
    path = _CGROUP / "cpu.max"
    parts = path.read_text().split() if path.is_file() else []
    return int(parts[0]) / int(parts[1]) if len(parts) == 2 and parts[0].isdigit() else None


def _version_verdicts(found: dict[str, dict[str, Any]]) -> Iterator[Verdict]:
    from packaging.version import Version

    if not found:
        yield Verdict("warn", "compresskit runs without being installed", "pip install -e .")
    missing_by_extra: dict[str, list[str]] = {}
    for name, entry in sorted(found.items()):
        installed, floor, extras = entry["installed"], entry["needs"], entry["extras"]
        if installed is None:
            for extra in extras:
                missing_by_extra.setdefault(extra, []).append(name)
            if not extras:
                yield Verdict("fail", f"{name} is not installed", f"pip install '{name}>={floor}'")
        elif floor and Version(installed) < Version(floor):
            yield Verdict("fail", f"{name} {installed} is older than {floor}", f"pip install '{name}>={floor}'")
        elif not extras:
            yield Verdict("ok", f"{name} {installed}")
    for extra, names in sorted(missing_by_extra.items()):
        yield Verdict("note", f"extra {extra}: {', '.join(names)} not installed", f"pip install 'compresskit[{extra}]'")


def _machine_verdicts(found: dict[str, Any]) -> Iterator[Verdict]:
    quota, cores, threads = found["cpu_quota"], found["cores"], found["threads"]
    usable = min(cores, quota) if quota else cores
    yield Verdict(
        "ok", f"Python {found['python']}, {found['processor']}, {' '.join(found['flags']) or 'no known flags'}"
    )
    if not _INT8_FLAGS & set(found["flags"]):
        fix = "int8 makes the file smaller here; measure speed with `compresskit bench`"
        yield Verdict("note", "the processor has no int8 dot product", fix)
    if threads > usable:
        fix = f"OMP_NUM_THREADS={max(1, int(usable))}, or --threads"
        yield Verdict("warn", f"{threads} threads on {usable:g} usable cores", fix)
    else:
        yield Verdict("ok", f"{threads} threads on {usable:g} usable cores")
    yield _amount(
        "memory", found["memory_available_bytes"], _ENOUGH_MEMORY, "close other programs, or a smaller --batch"
    )
    yield _amount("disk", found["disk_free_bytes"], _ENOUGH_DISK, "free some, or write to another disk")
    load = found["load_1min"]
    if load is not None and load > max(1.0, 0.5 * usable):
        yield Verdict("warn", f"load average {load:.1f}: timings will be noisy", "wait for other work to end")
    elif load is not None:
        yield Verdict("ok", f"load average {load:.1f}")
    if found["cuda"]:
        yield Verdict("ok", f"CUDA device {found['cuda']}")
    else:
        yield Verdict("note", "no CUDA device: everything runs on the processor")
    if "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" in os.environ:
        fix = "unset it; compresskit itself never loads pickles"
        yield Verdict("warn", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD makes torch.load unsafe", fix)
    if sys.flags.optimize:
        yield Verdict("note", "Python runs with -O", "run without it while something is wrong")


def _amount(what: str, free: int, enough: int, fix: str) -> Verdict:
    text = f"{what}: {free / 1e9:.1f} GB free"
    return Verdict("ok", text) if free >= enough else Verdict("warn", text, fix)
