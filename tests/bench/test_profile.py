"""The profile counts every parameter and byte once, and leaves no hook."""

from __future__ import annotations

import pytest

from compresskit.bench.profile import profile
from compresskit.pipeline.checks import hooks
from compresskit.pipeline.ledger import size_of
from tests import models
from tests.contract.conformance import ARCHITECTURES, model_of


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parts_sum_up_to_the_model(name: str) -> None:
    model = model_of(name)
    parts = profile(model)
    outer = [part for part in parts if part.kind not in ("attention", "ffn")]
    assert sum(part.parameters for part in outer) == size_of(model).parameters
    assert sum(part.bytes for part in outer) == size_of(model).bytes
    assert all(part.parameters > 0 for part in parts if part.kind in ("attention", "ffn"))


def test_times_are_those_of_the_parts() -> None:
    model = models.tiny("bert")
    before = hooks(model)
    parts = profile(model, models.inputs("bert", batch=4, length=64))
    blocks = [part for part in parts if part.kind == "block"]
    assert all(part.milliseconds is not None and part.milliseconds > 0 for part in blocks)
    attention = next(part for part in parts if part.kind == "attention")
    assert (attention.milliseconds or 0) <= (blocks[0].milliseconds or 0) * 1.5
    assert hooks(model) == before
