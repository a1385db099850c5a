"""The page of benchmark records: what it shows, and that hostile records are inert, escaped or refused (S29-S31)."""

from __future__ import annotations

import base64
import copy
import csv
import gzip
import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from compresskit.bench import record as records_module
from compresskit.bench.record import Record, unavailable
from compresskit.errors import DataError
from compresskit.report.bench_page import MOST_RECORDS, bench_page, headline, markdown_page, part_title, warnings
from compresskit.report.bench_tables import COLUMNS, csv_text
from compresskit.report.view import MOST_ARMS, View
from tests.report.records import CELL, HOSTILE, parts, record, steps

# Strings that the schema fixes; all others may be anything.
FIXED = {"schema", "role", "verdict", "status", "interleave", "scenario", "fit", "kind"}


class _Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def made() -> Record:
    return record()


@pytest.fixture(scope="module")
def page(made: Record) -> str:
    return bench_page([("out.json", made)])


def hostile(value: Any, evil: str, key: str = "") -> Any:
    """``value`` with ``evil`` for every free string, keys of free dictionaries included."""
    if isinstance(value, str):
        return value if key in FIXED else f"{evil}{value}"
    if isinstance(value, list):
        return [hostile(item, evil, key) for item in value]
    if isinstance(value, dict):
        free = key in ("cpu", "packages", "system", "details", "skipped", "guards", "variables")
        return {f"{evil}{name}" if free else name: hostile(item, evil, name) for name, item in value.items()}
    return value


def test_the_page_is_one_file_that_loads_and_runs_nothing(page: str) -> None:
    found = _Page(page)
    assert len(page.encode()) < 1_000_000
    assert {"script", "img", "link", "iframe", "object", "form", "image", "use"}.isdisjoint(found.tags)
    policy = dict(found.attributes)["content"] or ""
    policy = next(
        value or "" for name, value in found.attributes if name == "content" and "default-src" in (value or "")
    )
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not [name for name, _ in found.attributes if name == "style" or name.startswith("on")]
    addresses = [value or "" for name, value in found.attributes if name in ("href", "src", "xlink:href")]
    assert addresses
    assert all(address.startswith(("data:application/", "data:text/csv", "#")) for address in addresses)


def test_the_policy_allows_the_pages_own_style_sheet(page: str) -> None:
    import hashlib

    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in page
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_the_order_of_sections(page: str) -> None:
    order = [
        "Mind before reading",
        "int8 is faster",
        "Result",
        "Quality against latency",
        "Quality against size",
        "Ratios to the baseline",
        "Block times",
        "Size by step",
        "Layer by layer",
        "Where bytes, FLOPs and time are",
        "Not measured",
        "Environment, and how to reproduce",
        "The data",
    ]
    places = [page.index(f">{name}") for name in order]
    assert places == sorted(places)


def test_what_was_not_measured_is_named_and_never_zero(page: str, made: Record) -> None:
    text = " ".join(_Page(page).text)
    for reason in ("no RAPL counter", "need n>=459, have 300", "no device"):
        assert reason in text
    arm = made.arms[0].model_copy(update={"cells": {CELL: {"latency.p50": unavailable("ms", "no block was finished")}}})
    without = made.model_copy(update={"arms": [arm, *made.arms[1:]]})
    view = View(without)
    assert view.cost_of(arm, "latency") is None
    assert "no block was finished" in bench_page([("a", without)])


def test_dominated_and_tied_models_are_named(page: str) -> None:
    text = " ".join(_Page(page).text)
    assert "dominated by fp32 onnx" in text
    assert "tied with fp32" in text
    assert "on the frontier" in text


def test_every_chart_has_a_table_and_two_sizes(page: str) -> None:
    for figure in page.split("<figure>")[1:]:
        after = figure.split("</figure>")[1]
        assert figure.split("</figure>")[0].count("<svg") == 2
        assert "<table" in after.split("</section>")[0]


def test_the_record_is_in_the_page(made: Record) -> None:
    for blocks, suffix in ((60, ".json.gz"), (2, ".json")):
        wanted = record(blocks=blocks)
        links = re.findall(r'download="([^"]+)" href="data:([^;]+)[^,]*,([^"]+)"', bench_page([("out.json", wanted)]))
        name, _, content = links[0]
        assert name.endswith(suffix)
        raw = base64.b64decode(content)
        raw = gzip.decompress(raw) if suffix.endswith("gz") else raw
        assert Record.model_validate(json.loads(raw)) == wanted
        assert base64.b64decode(links[1][2]).decode() == csv_text([("out.json", wanted)])


def test_equal_records_give_equal_pages(page: str) -> None:
    assert bench_page([("out.json", record())]) == page


def test_headlines_say_what_the_verdict_means(made: Record) -> None:
    row = next(row for row in made.comparisons if row.headline)
    for verdict, words in (
        ("FASTER", "int8 is faster"),
        ("SLOWER", "int8 is slower"),
        ("SAME", "take the same time"),
        ("AMBIGUOUS", "can't tell int8 from fp32"),
        ("INVALID", "does not hold"),
    ):
        other = made.model_copy(update={"comparisons": [row.model_copy(update={"verdict": verdict})]})
        assert words in headline(View(other))
    assert headline(View(made.model_copy(update={"comparisons": []}))) == ""
    assert part_title(View(made)) == "int8 and 4 others against fp32"


def test_warnings_stand_for_what_the_fields_say(made: Record) -> None:
    plan = made.plan.model_copy(update={"interleave": "process", "stopped_by": "interrupted"})
    noise = made.env.noise.model_copy(update={"fit": "poor", "aa_ci": None, "reasons": ["load 9"]})
    arms = [*made.arms[:-1], made.arms[-1].model_copy(update={"error": "no memory", "cells": {}})]
    env = made.env.model_copy(update={"noise": noise})
    found = warnings(View(made.model_copy(update={"complete": False, "plan": plan, "env": env, "arms": arms})))
    for words in (
        "did not finish (ended by: interrupted)",
        "no memory",
        "load 9",
        "no A/A control",
        "process by process",
    ):
        assert any(words in warning for warning in found), words
    assert len(warnings(View(made))) == 1


def test_an_empty_record_still_gives_a_page(made: Record) -> None:
    bare = Record(complete=False, created="", env=made.env, plan=made.plan.model_copy(update={"cells": []}), arms=[])
    text = " ".join(_Page(bench_page([("a", bare)])).text)
    assert "Not drawn" in text
    assert "nothing was compared" in text


def test_several_records_share_a_page(made: Record) -> None:
    page = bench_page([(f"r{index}.json", made) for index in range(MOST_RECORDS + 3)])
    assert len(page.encode()) < 1_000_000
    shown = page.count("<article")
    assert 4 < shown <= MOST_RECORDS
    assert f"{MOST_RECORDS + 3 - shown} records more were given" in page
    assert "r0.json" in page


def test_less_is_better_for_perplexity(made: Record) -> None:
    arms = [
        arm.model_copy(update={"quality": arm.quality.model_copy(update={"metric": "perplexity"})})
        if arm.quality
        else arm
        for arm in made.arms
    ]
    score = View(made.model_copy(update={"arms": arms})).score
    assert score is not None
    assert not score.higher_is_better
    found = View(made).score
    assert found is not None
    assert found.higher_is_better


def test_cost_against_length_and_precision_recall(made: Record) -> None:
    cells = [made.plan.cells[0].model_copy(update={"id": f"t{n}", "length": n}) for n in (32, 64, 128, 256)]
    arms = [
        arm.model_copy(
            update={"cells": {f"t{n}": {"latency.p50": made.arms[0].cells[CELL]["latency.p50"]} for n in (32, 64, 128)}}
        )
        for arm in made.arms
    ]
    curve = [[0.0, 1.0], {"recall": 0.5, "precision": 0.8}, [1.0, 0.3], ["x", 1], [2, 2], None]
    first = arms[0].quality
    assert first is not None
    arms[0] = arms[0].model_copy(update={"quality": first.model_copy(update={"details": {"pr_curve": curve}})})
    text = bench_page(
        [("a", made.model_copy(update={"arms": arms, "plan": made.plan.model_copy(update={"cells": cells})}))]
    )
    assert ">Cost against length<" in text
    assert ">Precision and recall<" in text
    assert '<td class="number">0.8000</td>' in text


# Hostile records


@pytest.mark.parametrize(
    "evil", [HOSTILE, "\x00\x1b]8;;http://x\x07\u202e\ud800", "../../etc/passwd\n", "javascript:alert(1)//"]
)
def test_foreign_text_adds_no_element_and_no_attribute(made: Record, evil: str) -> None:
    content = made.to_dict()
    harmless = "x" * len(evil)
    bad, good = (Record.model_validate(_loads(hostile(copy.deepcopy(content), word))) for word in (evil, harmless))
    found, plain = (_Page(bench_page([(word, one)])) for word, one in ((evil, bad), (harmless, good)))
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


def _loads(value: Any) -> Any:
    """Lone surrogates are refused where the schema names a string; elsewhere they may come."""
    return json.loads(json.dumps(value).replace("\\ud800", "?"))


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
            part |= {"wall_ms": [number], "started": number}
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
    from compresskit.report.given import read_given

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


def test_csv_has_a_row_a_figure_and_no_formula(made: Record) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text([("out.json", made)]))))
    assert len(rows) == 7 * 4 + 6 + 6
    best = next(row for row in rows if row["arm"] == "int8" and row["figure"] == "latency.p50")
    assert float(best["value"]) == made.arm("int8").cells[CELL]["latency.p50"].value
    missing = next(row for row in rows if row["figure"] == "energy.cpu")
    assert missing["value"] == ""
    assert missing["status"] == "unavailable"
    evil = ["=HYPERLINK(1)", "+1", "-1", "@x", "\t=1", "  =1", "|cmd", "%x", '"=1"\n=2']
    arms = [made.arms[0].model_copy(update={"name": name}) for name in evil]
    for row in csv.reader(io.StringIO(csv_text([("=a", made.model_copy(update={"arms": arms}))]))):
        assert len(row) == len(COLUMNS)
        assert all(not cell.lstrip().startswith(("=", "+", "@", "|", "%")) for cell in row)
        assert row[1][:1] != "-"


def test_markdown_is_a_table_and_foreign_text_stays_text(made: Record) -> None:
    text = markdown_page([("out.json", made)])
    assert "| int8 | torch | 23.9 MB |" in text
    assert "> ⚠ torch's fp32" in text
    assert "int8 is faster" in text
    bad = Record.model_validate(_loads(hostile(made.to_dict(), HOSTILE)))
    evil = markdown_page([(HOSTILE, bad)])
    assert "<script" not in evil
    assert "<img" not in evil
    assert "[x](" not in evil.replace("\\[x](", "")
    columns = {line.replace("\\|", "").count("|") for line in evil.splitlines() if line.startswith("|")}
    assert columns == {8}


def test_the_longest_texts_everywhere_still_fit(made: Record) -> None:
    long = "<" * 5000
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
