"""Hostile records are inert, escaped or refused (S29-S31)."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from compresskit.bench import record as records_module
from compresskit.bench.record import Record
from compresskit.errors import DataError
from compresskit.report.bench_page import bench_page
from compresskit.report.given import read_given
from compresskit.report.view import MOST_ARMS
from tests.report.pages import Page, hostile, loads
from tests.report.records import CELL, HOSTILE, parts, record, steps


@pytest.fixture(scope="module")
def made() -> Record:
    return record()


@pytest.mark.parametrize(
    "evil", [HOSTILE, "\x00\x1b]8;;http://x\x07\u202e\ud800", "../../etc/passwd\n", "javascript:alert(1)//"]
)
def test_foreign_text_adds_no_element_and_no_attribute(made: Record, evil: str) -> None:
    content = made.to_dict()
    harmless = "x" * len(evil)
    bad, good = (Record.model_validate(loads(hostile(copy.deepcopy(content), word))) for word in (evil, harmless))
    found, plain = (Page(bench_page([(word, one)])) for word, one in ((evil, bad), (harmless, good)))
    names, plain_names = ([name for name, _ in each.attributes] for each in (found, plain))
    assert set(found.tags) == set(plain.tags)
    assert set(names) == set(plain_names)
    if evil.isprintable():
        assert found.tags == plain.tags, "what isn't printable is escaped, gets longer and is cut elsewhere"
        assert names == plain_names
    whole = "".join(found.text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e\ud800-\udfff]", whole)
    for name, value in found.attributes:
        if name == "download":
            assert re.fullmatch(r"[A-Za-z0-9_-]+\.(json|json\.gz|csv)", value or "")
        if name == "href":
            assert "/" not in (value or "").partition(",")[0].removeprefix("data:application/").removeprefix(
                "data:text/"
            )
            assert not (value or "").startswith("javascript")


@pytest.mark.parametrize("number", [1e308, -1e308, 5e-324, 0, -1])
def test_times_out_of_range_are_no_record(made: Record, number: float) -> None:
    content = made.to_dict()
    content["blocks"][0]["slices"][0]["wall_ms"] = [number]
    with pytest.raises(ValidationError):
        Record.model_validate(content)


@pytest.mark.parametrize("number", [1e308, -1e308, 5e-324, 10**60, 0, -1])
def test_numbers_out_of_range_are_not_drawn(made: Record, number: float) -> None:
    content = made.to_dict()
    for arm in content["arms"]:
        arm["metrics"]["size.serve"] |= {"value": number}
        arm["cells"][CELL]["latency.p50"] |= {"value": number, "ci": [number, number]}
        arm["steps"] = [step | {"bytes": number, "seconds": number} for step in steps()]
        arm["parts"] = [part | {"bytes": number, "flops": number, "milliseconds": number} for part in parts(2)]
        if arm["quality"]:
            arm["quality"] |= {"value": number, "ci": [number, number]}
    for row in content["comparisons"]:
        row |= {"ratio": number, "ci": [number, number], "guards": {"wall_min": {"ratio": number}}}
    for block in content["blocks"]:
        for part in block["slices"]:
            part |= {"started": number}
    content["env"]["noise"]["aa_ci"] = [number, number]
    content["plan"] |= {"delta": number}
    page = bench_page([("a", Record.model_validate(content))])
    svg = "".join(re.findall(r"<svg.*?</svg>", page))
    for value in re.findall(r' (?:x|y|cx|cy|r|width|height|x1|x2|y1|y2)="([^"]*)"', svg):
        assert abs(float(value)) < 2000, value
    assert len(page) < 1_000_000


@pytest.mark.parametrize("kind", ["steps", "parts", "details", "cpu"])
@pytest.mark.parametrize(
    "value", [None, 3, "text", [], {}, [[1]], [{"bytes": "x"}], {"a": [{}]}, True, [None, "x", {"path": {}}]]
)
def test_wrong_types_where_the_record_leaves_them_open(made: Record, kind: str, value: Any) -> None:
    arm = made.arms[-2]
    rows = value if isinstance(value, list) and all(isinstance(item, dict) for item in value) else [{"details": value}]
    if kind in ("steps", "parts"):
        arm = arm.model_copy(update={kind: [*rows, {"details": value, "path": value, "bytes": value, "kind": value}]})
    elif kind == "details" and arm.quality is not None:
        detail = {"pr_curve": value, "higher_is_better": value}
        arm = arm.model_copy(update={"quality": arm.quality.model_copy(update={"details": detail})})
    env = made.env.model_copy(update={"cpu": {"model": value, "other": value}}) if kind == "cpu" else made.env
    changed = made.model_copy(update={"arms": [*made.arms[:-2], arm, made.arms[-1]], "env": env})
    assert "</html>" in bench_page([("a", changed)])


def test_a_hundred_thousand_arms(made: Record) -> None:
    arm, row = made.arms[-1], made.comparisons[-1]
    arms = [*made.arms[:2], *(arm.model_copy(update={"name": f"arm {index}"}) for index in range(100_000))]
    rows = [row.model_copy(update={"b": f"arm {index}"}) for index in range(100_000)]
    page = bench_page([("a", made.model_copy(update={"arms": arms, "comparisons": rows}))])
    assert len(page.encode()) < 1_000_000
    assert f"{100_002 - MOST_ARMS} of 100002 models are not shown" in page
    assert "too large to be carried" in page


@pytest.mark.parametrize(
    "content",
    [
        '{"schema": "compresskit.bench/2.0", "complete": true}',
        '{"schema": NaN}',
        "[" * 100_000,
        '{"schema": "compresskit.bench/1.0", "complete": 1e999}',
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError) as caught:
        read_given([tmp_path / "a.json"])
    assert caught.value.code == "CK-B010"


def test_an_infinite_figure_is_refused(made: Record, tmp_path: Path) -> None:
    records_module.write(made, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    first = re.search(r'"value": (\d+\.\d+)', text)
    assert first is not None
    (tmp_path / "a.json").write_text(text.replace(first[0], '"value": 1e999', 1))
    with pytest.raises(DataError):
        records_module.read(tmp_path / "a.json")


def test_the_longest_texts_everywhere_still_fit(made: Record) -> None:
    long = "<" * 400
    content = hostile(made.to_dict(), long)
    arms = content["arms"]
    for number in range(60):
        extra = copy.deepcopy(arms[-1]) | {"name": f"{number}{long}"}
        extra["metrics"] = {
            f"{index}{long}": {"status": "unavailable", "reason": f"{number}{index}{long}"} for index in range(60)
        }
        arms.append(extra)
    content["comparisons"] = [content["comparisons"][0] | {"b": arm["name"]} for arm in arms]
    content["command"] = [long] * 300
    content["not_measured"] = [{"what": long, "why": long}] * 300
    content["warnings"] = [{"code": long, "text": long}] * 300
    content["env"]["packages"] = {f"{index}{long}": long for index in range(300)}
    page = bench_page([(long, Record.model_validate(content))])
    assert len(page.encode()) < 1_000_000
