"""Several processes: what they agree on, who writes, and what happens when the first one fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from compresskit.core import processes
from compresskit.errors import DataError, ResourceError, UsageError
from tests.children import together


def test_one_process_is_the_first_and_waits_for_nobody() -> None:
    assert (processes.count(), processes.index(), processes.is_first()) == (1, 0, True)
    processes.wait()
    assert processes.agree("x") == "x"
    assert processes.gather(3) == [3]
    assert processes.lead(lambda: 5) == 5
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    processes.average([weight])
    assert weight.grad.tolist() == [1, 2]


@pytest.mark.parametrize(("world", "why"), [("2", "RANK"), ("two", "no number"), ("0", "no number")])
def test_others_that_cannot_be_found(monkeypatch: pytest.MonkeyPatch, world: str, why: str) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UsageError) as caught:
        processes.start()
    assert caught.value.code == "CK-U019"
    assert why in caught.value.why
    assert processes.count() == 1


def test_two_processes(tmp_path: Path) -> None:
    def meet() -> None:
        number = processes.index()
        found = {
            "count": processes.count(),
            "agreed": processes.agree(f"from {number}"),
            "gathered": processes.gather(number),
            "led": processes.lead(lambda: (tmp_path / "written").write_text(str(number))),
            "mean": processes.mean(torch.tensor([float(number), 4.0])).tolist(),
        }
        parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
        parameters[0].grad = torch.tensor([1.0, 2.0]) * (number + 1)
        if number:
            parameters[1].grad = torch.ones(1)
        processes.average(parameters)
        found["gradients"] = [None if item.grad is None else item.grad.tolist() for item in parameters]
        model = nn.Linear(2, 1)
        nn.init.constant_(model.weight, float(number + 1))
        processes.synchronise(model.half())
        found["weight"] = model.weight.tolist()
        with pytest.raises(DataError) as other:
            processes.synchronise(nn.Linear(2, 1 + number))
        found["other"] = other.value.code
        with pytest.raises(OSError if number == 0 else ResourceError) as failed:
            processes.lead(lambda: Path("/nowhere/at/all").read_text())
        found["failed"] = getattr(failed.value, "code", "own")
        (tmp_path / f"{number}.json").write_text(json.dumps(found))

    assert together(2, meet) == [0, 0]
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in (0, 1))
    assert (tmp_path / "written").read_text() == "0"
    for found in (first, second):
        assert (found["count"], found["agreed"], found["mean"]) == (2, "from 0", [0.5, 4.0])
        assert found["gradients"] == [[1.5, 3.0], [0.5], None]
        assert found["weight"] == [[1.0, 1.0]]
        assert found["other"] == "CK-D090"
    assert (first["gathered"], second["gathered"]) == ([0, 1], [])
    assert (first["led"], second["led"]) == (1, None)
    assert (first["failed"], second["failed"]) == ("own", "CK-D091")
