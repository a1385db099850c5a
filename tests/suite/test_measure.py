from __future__ import annotations

import numpy as np
import pytest

from compresskit.bench.record import Metric, Record
from compresskit.suite.arms import cosines, fidelity_workloads
from compresskit.suite.measure import named
from compresskit.tasks import Workload
from compresskit.tasks.workload import Facts
from tests import models
from tests.report import records


def test_names_change_everywhere_at_once() -> None:
    before = records.record()
    names = [f"new {number}" for number, arm in enumerate(a for a in before.arms if a.role != "control")]
    after = named(before, names)
    assert [arm.name for arm in after.arms if arm.role != "control"] == names
    assert [arm.name for arm in after.arms if arm.role == "control"] == ["new 0 (again)"]
    known = {arm.name for arm in after.arms}
    assert all({row.a, row.b} <= known for row in after.comparisons)
    assert all(set(block.order) <= known for block in after.blocks)
    assert all(piece.arm in known for block in after.blocks for piece in block.slices)
    assert [row.ratio for row in after.comparisons] == [row.ratio for row in before.comparisons]
    assert before.blocks[0].slices[0].wall_ms == after.blocks[0].slices[0].wall_ms


def test_what_an_engine_stores_is_its_size() -> None:
    before: Record = records.record()
    sizes = {name: Metric(value=value, unit="bytes") for name, value in (("served", 9000), ("weights", 8000))}
    metrics = {f"size.{name}": size for name, size in sizes.items()}
    first, *others = before.arms
    arm = first.model_copy(update={"engine_details": {"stored_bytes": 5000}, "metrics": metrics})
    names = [each.name for each in before.arms if each.role != "control"]
    after = named(before.model_copy(update={"arms": [arm, *others]}), names)
    assert after.arms[0].metrics["size.served"].value == 6000
    assert "state dict" in after.arms[0].metrics["size.served"].method
    assert after.arms[1].metrics == before.arms[1].metrics


def test_fidelity_is_measured_on_two_kinds_of_text() -> None:
    config = models.tiny("bert").config.to_dict() | {"architectures": ["BertModel"]}
    found = fidelity_workloads(models.tokenizer(), Facts.of(config), seed=0)
    assert set(found) == {"documentation", "everyday"}
    assert all(workload.rows == 128 for workload in found.values())
    assert fidelity_workloads(models.tokenizer(), Facts(kind="language"), seed=0) == {}
    assert fidelity_workloads(None, Facts.of(config), seed=0) == {}


def test_cosines_are_of_each_text() -> None:
    batches = [{"input_ids": np.ones((2, 3), dtype=np.int64), "attention_mask": np.ones((2, 3), dtype=np.int64)}]
    workload = Workload("fidelity", batches, "compresskit.numerics.reductions:pool_mean", np.array([1, 0]), {}, 2)
    left = [{"embedding": np.array([[1.0, 0.0], [0.0, 2.0]])}]
    right = [{"embedding": np.array([[3.0, 0.0], [1.0, 1.0]])}]
    found = cosines(workload, left, right)
    assert found == {"mean": pytest.approx((1 + 0.5**0.5) / 2), "min": pytest.approx(0.5**0.5)}
