"""Single sections: layers and sizes from steps, profiles, quality, exponents, what a run lacks."""

from __future__ import annotations

from typing import Any

import pytest

from compresskit.bench import scale
from compresskit.bench.blocks import Block, Slice
from compresskit.bench.record import Cell, NotMeasured, Record, unavailable
from compresskit.report.content import Section
from compresskit.report.curve_sections import lengths, pr_points
from compresskit.report.environment import environment, not_measured
from compresskit.report.numbers import flops_text, held, plain_number, with_interval
from compresskit.report.profiled import by_kind, lines, profile_section, whole
from compresskit.report.quality import quality
from compresskit.report.steps import MOST_LAYERS, layer_section, waterfall_section
from compresskit.report.view import View
from tests.report.records import CELL, parts, record, steps


def cells(section: Section | None, table: int = 0) -> list[list[str]]:
    assert section is not None
    return [[cell.text for cell in row] for row in section.tables[table].rows]


def test_levels_of_the_waterfall_end_at_what_is_on_disk() -> None:
    rows = cells(waterfall_section(steps(), before=90_900_000, after=18_800_000))
    assert [row[0] for row in rows] == ["source", "1 pruning.ffn", "2 quantization.int8", "result"]
    assert [row[1] for row in rows] == ["90.9 MB", "84.2 MB", "18.8 MB", "18.8 MB"], "400 kB of other files in each"
    assert [row[2] for row in rows] == ["", "−6.7 MB", "−65.4 MB", ""]
    assert rows[-1][3] == "0.207"


def test_a_step_that_adds_bytes_says_so() -> None:
    grown = [steps()[0] | {"bytes": 10_000_000}, steps()[1] | {"bytes": 12_000_000}]
    section = waterfall_section(grown, before=11_000_000, after=12_000_000)
    assert cells(section)[2][2] == "+2.0 MB"
    assert section is not None
    assert "bar added" in str(section.chart)
    assert waterfall_section([], before=1, after=1) is None
    assert waterfall_section([{"bytes": "x"}]) is None


def test_rows_of_layers() -> None:
    details = {
        "a": {"kept": 3, "of": 4, "output_error": 0.25},
        "b": {"rank": 19, "of": 64, "relative_error": 0.5},
        "c": {"kept": [0, 1], "of": 8, "error": 0.125, "sparsity": 0.9},
        "d": {"bits_per_weight": 4.5, "bytes": [4000, 1000], "relative_error": 0.00001},
        "e": {"kept": 9, "of": 4},
    }
    rows = {row[0]: row[2:] for row in cells(layer_section([{"method": "m", "details": details}]))}
    assert rows["a"] == ["3 of 4", "25.0 %", "–", "–", "0.2500", "outputs"]
    assert rows["b"] == ["rank 19 of 64", "–", "–", "–", "0.5000", "weights"]
    assert rows["c"] == ["2 of 8", "90.0 %", "–", "–", "0.1250", ""]
    assert rows["d"] == ["–", "–", "4.5", "4.0 kB → 1.0 kB", "1.0e-05", "weights"]
    assert rows["e"][0] == "–", "more kept than there were"


def test_many_layers_show_the_worst_first() -> None:
    details = {f"layer {index}": {"relative_error": index / 1000} for index in range(MOST_LAYERS + 50)}
    section = layer_section([{"method": "m", "details": details}])
    worst, every = cells(section), cells(section, 1)
    assert [row[0] for row in worst] == [f"layer {MOST_LAYERS + 49 - index}" for index in range(5)]
    assert len(every) == MOST_LAYERS
    assert section is not None
    assert section.notes == ["50 layers with smaller errors are left out."]


def test_profile_sums_by_kind() -> None:
    found = lines(parts(6))
    kinds = {line.kind: line for line in by_kind(found)}
    assert whole(found, "bytes") == sum(line.bytes or 0 for line in kinds.values())
    assert whole(found, "flops") == pytest.approx(6 * 3.4e8)
    assert kinds["ffn"].count == 6
    assert kinds["block"].flops == 0, "attention and the feed-forward networks are all of it"
    assert kinds["other"].flops is None


def test_a_deep_model_is_drawn_by_kind() -> None:
    few, many = (str(section.chart) for n in (6, 24) if (section := profile_section(parts(n))) is not None)
    assert "encoder.layer.3.attention" in few
    assert "encoder.layer.3.attention" not in many
    assert "feed-forward networks" in many
    assert profile_section([]) is None
    assert profile_section([{"path": "a", "kind": "block", "bytes": 0}]) is None


def _with_quality(against: dict[str, Any]) -> Record:
    made = record(blocks=2)
    index = next(number for number, arm in enumerate(made.arms) if arm.name == "int8")
    found = made.arms[index].quality
    assert found is not None
    arm = made.arms[index].model_copy(update={"quality": found.model_copy(update={"against": against})})
    return made.model_copy(update={"arms": [*made.arms[:index], arm, *made.arms[index + 1 :]]})


def test_the_change_is_coloured_only_where_it_is_sure() -> None:
    for ci, better, kind in (
        ([-0.2, 0.1], True, "number"),
        ([-0.2, -0.1], True, "number slower"),
        ([-0.2, -0.1], False, "number faster"),
    ):
        against = {"difference": -0.15, "ci": ci, "higher_is_better": better, "flips": 1.25}
        section = quality(View(_with_quality(against)))
        assert section is not None
        assert "answers flipped" in section.tables[0].columns
        row = next(row for row in section.tables[0].rows if row[0].text == "int8")
        assert row[4].kind == kind
        assert row[5].text == "1.25 %"


def test_columns_that_nobody_fills_are_left_out() -> None:
    section = quality(View(_with_quality({})))
    assert section is not None
    assert list(section.tables[0].columns) == ["model", "task", "score", "n", "change"]
    bare = record(blocks=2)
    arms = [arm.model_copy(update={"quality": None}) for arm in bare.arms]
    assert quality(View(bare.model_copy(update={"arms": arms}))) is None


def _by_length(exponent: float) -> Record:
    made = record(blocks=1)
    sizes = (32, 64, 128, 256)
    cells = [Cell(id=f"t{n}", scenario="encode", batch=1, length=n, threads=1) for n in sizes]
    blocks = []
    for cell in cells:
        for number in range(6):
            wall = 0.01 * cell.length**exponent * (1 + 0.001 * (number % 3))
            slices = [Slice(arm=arm.name, position=0, wall_ms=[wall] * 3, cpu_ms=[wall] * 3) for arm in made.arms]
            blocks.append(
                Block(id=f"{cell.id}{number}", cell=cell.id, replicate=0, number=number, order=[], slices=slices)
            )
    p50 = made.arms[0].cells[CELL]["latency.p50"]
    arms = [
        arm.model_copy(
            update={
                "cells": {
                    f"t{n}": {"latency.p50": p50.model_copy(update={"value": 0.01 * n**exponent, "ci": None})}
                    for n in sizes
                }
            }
        )
        for arm in made.arms
    ]
    plan = made.plan.model_copy(update={"cells": cells, "headline": "t32"})
    return made.model_copy(update={"plan": plan, "blocks": blocks, "arms": arms, "comparisons": []})


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_exponents_of_cost_against_length(exponent: float) -> None:
    section = lengths(View(_by_length(exponent)))
    rows = cells(section)
    assert len(rows) == 6, "all but the control"
    assert all(row[1].startswith(f"{exponent:.2f} [") for row in rows)


def test_exponents_need_samples_of_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _by_length(1.0)
    without = made.model_copy(update={"blocks": [block for block in made.blocks if block.cell != "t64"]})
    monkeypatch.setattr(scale, "fits", lambda *_, **__: pytest.fail("nothing to fit"))
    section = lengths(View(without))
    assert section is not None
    assert len(section.tables) == 1, "the curve is drawn from the figures"
    assert lengths(View(record(blocks=1))) is None


def test_points_of_a_curve() -> None:
    assert pr_points([[1, 0.5], {"recall": 0, "precision": 1}, [0.5, float("nan")], "x", [1, 2, 3]]) == [
        (0, 1),
        (1, 0.5),
    ]
    assert len(pr_points([[index / 1e5, 0.5] for index in range(100_000)])) <= 500
    assert pr_points({"recall": 1}) == []


def test_environment_and_command() -> None:
    section = environment(record(blocks=1))
    assert section.verbatim == "compresskit bench run fp32 int8 --profile standard -o out.json"
    rows = dict(cells(section))  # type: ignore[arg-type]
    assert rows["CPU: model"] == "Xeon 8481C"
    assert rows["environment hash"] == "sha256:1f2e"
    secret = record(blocks=1).model_copy(update={"command": ["run", "hf_abcdefghijklmnop", "a; rm -rf"]})
    assert environment(secret).verbatim == "run 'hf_***' 'a; rm -rf'"


def test_what_was_not_measured_is_grouped() -> None:
    rows = cells(not_measured(View(record(blocks=1))))
    assert ["GPU memory", "the run", "no device"] in rows
    assert ["energy.cpu", "all models", "no RAPL counter"] in rows


def test_figures_as_text() -> None:
    assert with_interval(24.0, (23.5, 24.25), "ms") == "24.00 [23.50, 24.25] ms"
    assert with_interval(None, (1, 2)) == "–"
    assert plain_number(0.00001234) == "1.23e-05"
    assert plain_number(1234567.0) == "1234567"
    assert held(999_999) == "1000.0 kB"
    assert flops_text(2.87e9) == "2.87 GFLOP"


def test_figures_that_lack_for_the_same_reason_share_a_row() -> None:
    made = record(blocks=1)
    lost = {f"parameters.{index}": unavailable("numbers", "not in the file") for index in range(10)}
    arms = [arm.model_copy(update={"metrics": arm.metrics | lost}) for arm in made.arms]
    rows = cells(not_measured(View(made.model_copy(update={"arms": arms}))))
    names = ", ".join(f"parameters.{index}" for index in range(8))
    assert [f"{names} and 2 more", "all models", "not in the file"] in rows
    one = [arms[0], *made.arms[1:]]
    rows = cells(not_measured(View(made.model_copy(update={"arms": one}))))
    assert [f"{names} and 2 more", "fp32", "not in the file"] in rows


def test_quality_is_named_once_as_not_measured() -> None:
    made = record(blocks=1)
    arms = [arm.model_copy(update={"quality": None}) for arm in made.arms]
    told = [NotMeasured(what="quality on a task", why="no --task was given")]
    for missing, count in (([], 1), (told, 1)):
        rows = cells(not_measured(View(made.model_copy(update={"arms": arms, "not_measured": missing}))))
        assert sum(row[0] == "quality on a task" for row in rows) == count
