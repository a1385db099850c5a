"""The page of benchmark records: what it shows, and that hostile records are inert, escaped or refused (S29-S31)."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import re

import pytest

from compresskit.bench.record import Record, unavailable
from compresskit.report.bench_page import MOST_RECORDS, bench_page, headline, markdown_page, part_title, warnings
from compresskit.report.bench_tables import COLUMNS, csv_text
from compresskit.report.view import View
from tests.report.pages import Page, hostile, loads
from tests.report.records import CELL, HOSTILE, record


@pytest.fixture(scope="module")
def made() -> Record:
    return record()


@pytest.fixture(scope="module")
def page(made: Record) -> str:
    return bench_page([("out.json", made)])


def test_the_page_is_one_file_that_loads_and_runs_nothing(page: str) -> None:
    found = Page(page)
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
    text = " ".join(Page(page).text)
    for reason in ("no RAPL counter", "need n>=459, have 300", "no device"):
        assert reason in text
    arm = made.arms[0].model_copy(update={"cells": {CELL: {"latency.p50": unavailable("ms", "no block was finished")}}})
    without = made.model_copy(update={"arms": [arm, *made.arms[1:]]})
    view = View(without)
    assert view.cost_of(arm, "latency") is None
    assert "no block was finished" in bench_page([("a", without)])


def test_dominated_and_tied_models_are_named(page: str) -> None:
    text = " ".join(Page(page).text)
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
    text = " ".join(Page(bench_page([("a", bare)])).text)
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
    bad = Record.model_validate(loads(hostile(made.to_dict(), HOSTILE)))
    evil = markdown_page([(HOSTILE, bad)])
    assert "<script" not in evil
    assert "<img" not in evil
    assert "[x](" not in evil.replace("\\[x](", "")
    columns = {line.replace("\\|", "").count("|") for line in evil.splitlines() if line.startswith("|")}
    assert columns == {8}
