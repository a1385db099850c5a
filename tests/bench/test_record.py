"""Records: read back as written, the packaged schema is current, an unavailable figure is never a number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from compresskit.bench import record
from compresskit.bench.record import Arm, Environment, Metric, ModelInfo, Plan, Record, unavailable
from compresskit.errors import DataError

SCHEMA = Path(record.__file__).with_name("schema.json")


def small() -> Record:
    arm = Arm(
        name="a",
        role="baseline",
        model=ModelInfo(source="a"),
        metrics={"energy.cpu": unavailable("J", "no counter")},
        cells={"c": {"latency.p50": Metric(value=2.5, unit="ms", ci=(2.4, 2.6), level=0.95, n=10)}},
    )
    return Record(complete=True, created="now", env=Environment(hash="x"), plan=Plan(profile="quick"), arms=[arm])


def test_the_packaged_schema_is_current() -> None:
    assert json.loads(SCHEMA.read_text()) == json.loads(json.dumps(record.json_schema()))


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = record.write(small(), tmp_path / "deep" / "out.json")
    assert written.id.startswith("sha256:")
    assert record.read(tmp_path / "deep" / "out.json") == written
    assert written.with_id().id == written.id
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.json"]


def test_another_content_has_another_id() -> None:
    assert small().with_id().id != small().model_copy(update={"complete": False}).with_id().id


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": 0.0, "status": "unavailable", "reason": "no counter"},
        {"status": "unavailable"},
        {"ci": (0.0, 0.0), "status": "unavailable", "reason": "no counter"},
        {"value": None},
        {"value": float("nan")},
    ],
)
def test_a_metric_is_a_number_or_a_reason(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Metric(**wrong)  # type: ignore[arg-type]


def test_what_was_not_measured_is_unavailable() -> None:
    arm = small().baseline
    assert arm.metric("latency.p50", "c").value == 2.5
    assert arm.metric("energy.cpu", "c").reason == "no counter"
    assert arm.metric("latency.p99", "c").status == "unavailable"


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        "nothing",
        '{"schema": "compresskit.bench/2.0"}',
        '{"schema": "compresskit.bench/1.0"}',
        '{"schema": 3}',
        '{"schema": "compresskit.bench/1.0", "complete": NaN}',
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        record.read(path)
    assert caught.value.code == "CK-B010"


def test_keys_of_a_later_minor_version_are_ignored(tmp_path: Path) -> None:
    content = small().to_dict() | {"schema": "compresskit.bench/1.7", "new": {"key": 1}}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert record.read(path).arms == small().arms
