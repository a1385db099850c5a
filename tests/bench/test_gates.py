"""Gates on two records: what passes, what is missed, what can't be told, what can't be compared."""

from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compresskit.bench import gates, record
from compresskit.bench.gates import compare, parse_gate
from compresskit.bench.record import Quality, Record
from compresskit.errors import CompressKitError, DataError, UsageError
from tests.bench.records import make


def sts(shift: float, seed: int = 0) -> Quality:
    """A score whose examples are right or wrong, in points."""
    generator = np.random.default_rng(seed)
    right = (generator.random(400) < 0.8 + shift).astype(float)
    return Quality(
        task="classification",
        metric="accuracy",
        value=100 * float(right.mean()),
        unit="points",
        n=400,
        scores=right.tolist(),
    )


def outcome(a: Record, b: Record, *texts: str) -> list[str]:
    return [item.verdict for item in compare(a, b, [parse_gate(text) for text in texts]).gates]


@pytest.mark.parametrize(
    ("text", "metric", "operator", "bound", "unit"),
    [
        ("p50<=-10%", "p50", "<=", -10.0, "%"),
        ("quality>=-0.5pp", "quality", ">=", -0.5, "pp"),
        (" size <= 0.30x ", "size", "<=", 0.3, "x"),
        ("latency.p99<=20", "latency.p99", "<=", 20.0, ""),
    ],
)
def test_gates_are_read(text: str, metric: str, operator: str, bound: float, unit: str) -> None:
    found = parse_gate(text)
    assert (found.metric, found.operator, found.bound, found.unit) == (metric, operator, bound, unit)


@pytest.mark.parametrize(
    "text", ["", "p50", "p50<5%", "p50<=x", "p50<=nan", "p50<=1e9%", "<=5%", "p50<=5%;", "p50==5%"]
)
def test_what_is_no_gate(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_gate(text)
    assert caught.value.code == "CK-B030"


def test_latency_gates_go_by_the_interval() -> None:
    before, faster = make({"m": 1.0}), make({"m": 0.8}, seed=1)
    near = make({"m": 0.9}, seed=1, noise=0.3)
    assert outcome(before, faster, "p50<=-10%") == ["PASS"]
    assert outcome(before, faster, "p50<=-30%") == ["FAIL"]
    assert outcome(before, faster, "p50<=0.85x") == ["PASS"]
    assert outcome(before, near, "p50<=-10%") == ["AMBIGUOUS"]
    found = compare(before, near, [parse_gate("p50<=-10%")])
    assert not found.failed()
    assert found.failed(strict=True)


def test_the_ratio_is_of_the_raw_samples() -> None:
    before, after = make({"m": 1.0}), make({"m": 0.8}, seed=1)
    item = compare(before, after, [parse_gate("p50<=0.9x")]).gates[0]
    assert item.value == pytest.approx(0.8, rel=0.02)
    assert item.ci is not None
    assert item.ci[0] < 0.8 < item.ci[1]
    change = next(change for change in compare(before, after).changes if change.metric == "latency.p50")
    assert change.verdict == "FASTER"
    assert change.ratio == pytest.approx(0.8, rel=0.02)


def test_size_and_other_figures() -> None:
    before, after = make({"m": 1.0}, sizes={"m": 1000}), make({"m": 1.0}, sizes={"m": 250}, seed=1)
    assert outcome(before, after, "size<=0.30x", "size<=0.20x", "size<=-70%", "size.served<=250") == [
        "PASS",
        "FAIL",
        "PASS",
        "PASS",
    ]


def test_what_was_not_measured_is_no_pass() -> None:
    before, after = make({"m": 1.0}), make({"m": 1.0}, seed=1)
    found = compare(before, after, [parse_gate("quality>=-0.5pp"), parse_gate("energy.call<=0.5x")])
    assert [item.verdict for item in found.gates] == ["UNKNOWN", "UNKNOWN"]
    assert found.failed()
    assert all(item.reason for item in found.gates)


def test_quality_gates() -> None:
    before = make({"m": 1.0}, quality={"m": sts(0.0)})
    worse = make({"m": 1.0}, quality={"m": sts(-0.2)}, seed=1)
    assert outcome(before, before, "quality>=-0.5pp") == ["PASS"]
    assert outcome(before, worse, "quality>=-0.5pp") == ["FAIL"]
    assert outcome(before, worse, "quality>=50") == ["PASS"]


def test_several_gates_are_corrected() -> None:
    before, after = make({"m": 1.0}, noise=0.2), make({"m": 1.035}, seed=3, noise=0.2)
    alone = compare(before, after, [parse_gate("p50<=0%")]).gates[0]
    many = compare(before, after, [parse_gate("p50<=0%")] * 20).gates
    assert alone.p is not None
    assert many[0].p == pytest.approx(min(1.0, 20 * alone.p))


@pytest.mark.parametrize("change", [{"model": "y"}, {"logical": 64}, {"flags": "g"}])
def test_another_machine_is_refused_or_labelled(change: dict[str, object]) -> None:
    before, after = make({"m": 1.0}), make({"m": 0.5}, seed=1, cpu=change)
    with pytest.raises(DataError) as caught:
        compare(before, after)
    assert caught.value.code == "CK-B031"
    assert caught.value.exit_code == 3
    found = compare(before, after, [parse_gate("p50<=-10%"), parse_gate("size<=0.5x")], allow_env_diff=True)
    assert found.cross_machine
    assert {item.verdict for item in found.changes} == {""}
    assert [item.verdict for item in found.gates] == ["AMBIGUOUS", "FAIL"]


def test_other_inputs_or_work_are_refused() -> None:
    before, after = make({"m": 1.0}), make({"m": 1.0}, seed=1)
    cell = after.plan.cells[0]
    for changes in ({"input_hash": "other"}, {"id": "encode/b8/t16/th1"}):
        cells = [cell.model_copy(update=changes)]
        other = after.model_copy(update={"plan": after.plan.model_copy(update={"cells": cells})})
        assert gates.environment_differences(before, other)


def test_arms_are_paired_by_name_and_gated_as_candidates() -> None:
    before, after = make({"fp32": 1.0, "int8": 0.7}), make({"fp32": 1.3, "int8": 0.7}, seed=1)
    found = compare(before, after, [parse_gate("p50<=5%")])
    assert [(item.arm, item.verdict) for item in found.gates] == [("int8", "PASS")]
    assert {change.arm for change in found.changes} == {"fp32", "int8"}


def leaves(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, item in items for found in leaves(item, (*place, key)))]


def test_damaged_records_give_typed_errors_only(tmp_path: Path) -> None:
    """Any one value replaced by something hostile: read and compared, or refused."""
    whole = make({"m": 1.0, "n": 0.8}, processes=2, count=4, calls=2, quality={"m": sts(0.0), "n": sts(-0.1)}).to_dict()
    good, path = record.Record.model_validate(whole), tmp_path / "x.json"
    places = leaves(whole)[1:]
    hostile = [None, "", "</script>", -1, 0, 1e308, -1e308, 1e-308, 2**70, True, [], {}, [[1]], {"a": 1}, "x" * 5000]
    generator = random.Random(0)
    chosen = [gates.parse_gate(text) for text in ("p50<=-10%", "quality>=-0.5pp", "size<=0.3x", "latency.p90<=5%")]
    statuses = []
    for _ in range(250):
        content = copy.deepcopy(whole)
        place = generator.choice(places)
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = generator.choice(hostile)
        path.write_text(json.dumps(content))
        try:
            compare(good, record.read(path), chosen, allow_env_diff=generator.random() < 0.5)
        except CompressKitError as error:
            statuses.append(error.exit_code)
    assert len(statuses) > 20
    assert set(statuses) == {3}


def test_draws_know_how_processes_differ() -> None:
    calm = compare(make({"m": 1.0}, between=0.001), make({"m": 1.0}, seed=1, between=0.001)).changes[-1].ci
    apart = compare(make({"m": 1.0}, between=0.05), make({"m": 1.0}, seed=1, between=0.05)).changes[-1].ci
    assert calm is not None
    assert apart is not None
    assert math.log(apart[1] / apart[0]) > 2 * math.log(calm[1] / calm[0])
