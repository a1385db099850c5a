"""Faults on demand happen at their point, at the asked time, and never otherwise."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator

import pytest
import torch

from compresskit.checkpoint import faults
from compresskit.errors import UsageError


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    faults.reset()
    yield
    faults.reset()


def test_nothing_happens_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    for name in (*faults.SAVE_POINTS, *faults.ADD_POINTS):
        faults.point(name)
    monkeypatch.setenv(faults.VARIABLE, "save.begin:eio")
    faults.point("save.end")


@pytest.mark.parametrize(("action", "number"), [("enospc", errno.ENOSPC), ("eio", errno.EIO)])
def test_errors_of_a_disk(action: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, f"a.b:{action}")
    with pytest.raises(OSError, match=r"a\.b") as raised:
        faults.point("a.b")
    assert raised.value.errno == number
    faults.point("a.b")  # once only


def test_the_third_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, "a:eio:3")
    faults.point("a")
    faults.point("a")
    with pytest.raises(OSError, match="a"):
        faults.point("a")


def test_values_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, "loss:nan")
    values = torch.ones(2, 2)
    faults.point("loss", values)
    assert int(values.isnan().sum()) == 1
    faults.reset()
    faults.point("loss")


def test_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, "a:slow")
    monkeypatch.setenv("CK_FAULT_SECONDS", "0.05")
    started = time.perf_counter()
    faults.point("a")
    assert time.perf_counter() - started >= 0.05


@pytest.mark.parametrize("text", ["a", "a:b", ":kill", "a:kill:x", "a:kill:-1", "a:kill:1:2"])
def test_what_cannot_be_understood_is_an_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, text)
    with pytest.raises(UsageError) as raised:
        faults.point("a")
    assert raised.value.code == "CK-I020"
