"""The profile counts every parameter and byte once, and leaves no hook."""

from __future__ import annotations

import pytest

from compresskit.bench.operations import operations
from compresskit.bench.profile import INNER, profile
from compresskit.pipeline.checks import hooks
from compresskit.pipeline.ledger import size_of
from tests import models
from tests.contract.conformance import ARCHITECTURES, model_of


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parts_sum_up_to_the_model(name: str) -> None:
    model = model_of(name)
    parts = profile(model)
    outer = [part for part in parts if part.kind not in INNER]
    assert sum(part.parameters for part in outer) == size_of(model).parameters
    assert sum(part.bytes for part in outer) == size_of(model).bytes
    assert all(part.parameters > 0 for part in parts if part.kind in INNER)


def test_times_are_those_of_the_parts() -> None:
    model = models.tiny("bert")
    before = hooks(model)
    parts = profile(model, models.inputs("bert", batch=4, length=64))
    blocks = [part for part in parts if part.kind == "block"]
    assert all(part.milliseconds is not None and part.milliseconds > 0 for part in blocks)
    attention = next(part for part in parts if part.kind == "attention")
    assert (attention.milliseconds or 0) <= (blocks[0].milliseconds or 0) * 1.5
    assert hooks(model) == before


@pytest.mark.parametrize("name", ["bert", "albert", "t5", "gpt2", "mixtral", "xlnet"])
def test_operations_of_the_parts_sum_up_to_those_of_the_model(name: str) -> None:
    model, inputs = model_of(name), models.inputs(name, batch=2, length=16)
    parts = profile(model, inputs, timed=False)
    total = 2 * sum(operations(model, inputs).values())
    assert sum(part.flops or 0 for part in parts if part.kind not in INNER) == total
    inner = sum(part.flops or 0 for part in parts if part.kind in INNER)
    assert inner == sum(part.flops or 0 for part in parts if part.kind == "block") > 0
    assert all(part.milliseconds is None for part in parts)


def test_the_time_of_a_part_holds_the_matrix_that_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def spent(_model: object, paths: list[str], _inputs: object) -> dict[str, float]:
        return dict.fromkeys(paths, 1.0) | {"": 100.0}

    monkeypatch.setattr("compresskit.bench.profile._time", spent)
    parts = profile(models.tiny("bert"), models.inputs("bert"))
    ffn = next(part for part in parts if part.kind == "ffn")
    assert ffn.milliseconds == 2.0, "intermediate, and output.dense beside it"
    outer = [part.milliseconds or 0.0 for part in parts if part.kind not in INNER]
    assert sum(outer) == pytest.approx(100.0)
