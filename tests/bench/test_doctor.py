"""The doctor of timings: what it says of a machine, and its run of the same work twice."""

from __future__ import annotations

from typing import Any

import pytest

from compresskit.bench import doctor

QUIET: dict[str, Any] = {
    "model": "x",
    "allowed": 4,
    "logical": 4,
    "quota": None,
    "governor": "performance",
    "turbo": False,
    "temperature": 50.0,
    "load": [0.1, 0.1, 0.1],
    "steal_percent": 0.0,
}


def said(monkeypatch: pytest.MonkeyPatch, threads: int = 1, **changes: Any) -> list[str]:
    monkeypatch.setattr(doctor, "processor", lambda: {**QUIET, **changes})
    return [line.what for line in doctor.machine_lines(threads) if line.level == "warn"]


def test_a_quiet_machine_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.psutil, "swap_memory", lambda: type("S", (), {"percent": 0.0}))
    assert said(monkeypatch) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"load": [3.0, 1.0, 1.0]}, "load"),
        ({"quota": 1.5}, "quota"),
        ({"governor": "powersave"}, "governor"),
        ({"steal_percent": 4.0}, "virtual"),
        ({"temperature": 95.0}, "°C"),
        ({"threads": 8}, "threads"),
    ],
)
def test_what_disturbs_is_said(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], word: str) -> None:
    assert any(word in line for line in said(monkeypatch, **changes))


def test_it_measures_the_noise_floor() -> None:
    found = doctor.diagnose(seconds=0.5)
    low, high = found.noise
    assert 0.3 < low < high < 3.0
    assert found.blocks >= 6
    assert found.fit in ("good", "fair", "poor")
