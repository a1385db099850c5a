"""The lock, the environment, memory, energy."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from compresskit.bench import energy, memory
from compresskit.bench.environment import capture
from compresskit.bench.lock import machine_lock
from compresskit.bench.memory import peak_mib, proportional_mib, reset_peak, resident_mib
from compresskit.errors import ResourceError

HOLD = """
import sys
from compresskit.bench.lock import machine_lock
with machine_lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_benchmark_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bench.lock"
    environment = {**os.environ, "COMPRESSKIT_BENCH_LOCK": str(path)}
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ResourceError) as caught, machine_lock(path):
            pass
        assert caught.value.code == "CK-B012"
    finally:
        other.kill()
        other.communicate()
    with machine_lock(path):
        pass


def test_host_and_user_are_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "secret-host")
    found = capture(device="cpu")
    text = found.model_dump_json()
    assert "secret-host" not in text
    assert str(Path.cwd()) not in text
    assert "secret-host" in capture(device="cpu", full=True).model_dump_json()
    assert found.packages["torch"]
    assert found.cpu["logical"] == os.cpu_count()


def test_the_hash_is_of_what_must_be_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    first = capture(device="cpu")
    assert capture(device="cpu", full=True).hash == first.hash
    monkeypatch.setattr("compresskit.bench.environment._version", lambda name: "0.0")
    assert capture(device="cpu").hash != first.hash


def test_peak_memory_is_reset() -> None:
    if not reset_peak():
        pytest.skip("the system doesn't reset the mark")
    before = peak_mib()
    with mmap.mmap(-1, 40 * 2**20) as area:  # past any allocator, so that it is given back at once
        for _ in range(40):
            area.write(b"1" * 2**20)
        during = peak_mib()
    assert before is not None
    assert during is not None
    assert 30 < during - before < 60
    assert reset_peak()
    after = peak_mib()
    resident = resident_mib()
    assert after is not None
    assert resident is not None
    assert after < during - 20
    assert after == pytest.approx(resident, abs=8)
    assert (proportional_mib() or 0) <= resident + 8


def test_memory_that_is_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert memory._field(tmp_path / "none", "VmHWM") is None
    (tmp_path / "status").write_text("Name: x\n")
    assert memory._field(tmp_path / "status", "VmHWM") is None


def package(root: Path, name: str, joules: float) -> None:
    folder = root / name
    folder.mkdir()
    (folder / "energy_uj").write_text(str(int(joules * 1e6)))
    (folder / "max_energy_range_uj").write_text(str(int(1000e6)))


def test_rapl_is_read_and_wraps(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 10.0)
    package(tmp_path, "intel-rapl:1", 5.0)
    counter, why = energy.counter("cpu", tmp_path)
    assert counter is not None
    assert why == ""
    assert counter.read() == 15.0
    assert counter.difference(10.0, 15.0) == 5.0
    assert counter.difference(1990.0, 15.0) == pytest.approx(25.0)


def test_energy_is_counted_beyond_idle() -> None:
    now, joules = [0.0], [0.0]

    def pass_time(seconds: float, watts: float) -> None:
        now[0] += seconds
        joules[0] += seconds * watts

    def run() -> int:
        pass_time(1.0, 30.0)
        return 10

    counter = energy.Counter("fake", lambda: joules[0])
    found = energy.measure(
        counter, run, seconds=30, idle=10, sleep=lambda seconds: pass_time(seconds, 12.0), clock=lambda: now[0]
    )
    assert found.idle_watts == pytest.approx(12.0)
    assert found.joules_per_call == pytest.approx((30.0 - 12.0) / 10)
    assert found.calls == 300


def test_no_counter_is_said(tmp_path: Path) -> None:
    assert energy.counter("cpu", tmp_path) == (None, "no RAPL counter on this machine")
