"""Gates: their grammar, every unit, and what can't be checked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compresskit.errors import RecipeError
from compresskit.recipe.gates import Gate, Measured, check_gates, parse_gate, parse_gate_argument

SCORE = Measured(after=0.905, before=0.924, kind="fraction")
POINTS = Measured(after=90.5, before=92.4, kind="points")
SIZE = Measured(after=20e6, before=80e6, kind="bytes")
TIME = Measured(after=0.012, before=0.024, kind="seconds")


@pytest.mark.parametrize(
    ("measured", "text", "found", "passed"),
    [
        (SCORE, ">= -2pp", -1.9, True),
        (SCORE, ">=-1.0pp", -1.9, False),
        (POINTS, ">= -2pp", -1.9, True),
        (SCORE, ">= 0.9 abs", 0.905, True),
        (SIZE, "<= 0.25x", 0.25, True),
        (SIZE, "< 0.25x", 0.25, False),
        (SIZE, "<= -70%", -75.0, True),
        (SIZE, "<= 20MB", 20.0, True),
        (SIZE, "<= 19 MiB", 20e6 / 2**20, False),
        (TIME, "<= 0.6x", 0.5, True),
        (TIME, "<= 11ms", 12.0, False),
        (TIME, "> 10000us", 12_000.0, True),
    ],
)
def test_units(measured: Measured, text: str, found: float, passed: bool) -> None:
    verdict = parse_gate("metric", text).check(measured)
    assert verdict.found == pytest.approx(found)
    assert verdict.passed is passed


@pytest.mark.parametrize(
    "text",
    [
        "0.25x",
        "<= 0.25",
        "<= x",
        "== 1x",
        "<= 0.25 y",
        "<= 1e-4x",
        "<= 0,5x",
        "",
        "<= 0.25x 3",
        None,
        3,
        ["<= 1x"],
        "<=" * 99,
    ],
)
def test_units_and_comparisons_are_obligatory(text: object) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_gate("size", text)
    assert caught.value.code == "CK-R015"
    assert caught.value.fix


@pytest.mark.parametrize("metric", ["", "Size", "latency.", "a b", "../x", "a" * 65])
def test_names(metric: str) -> None:
    with pytest.raises(RecipeError, match="not the name of a metric"):
        parse_gate(metric, "<= 1x")


def test_in_one_piece() -> None:
    assert parse_gate_argument("latency.p50<=-10%") == Gate("latency.p50", "<=", -10.0, "%")
    assert parse_gate_argument(" quality >= -0.5 pp ") == parse_gate("quality", ">= -0.5pp")
    for text in ("p50", "<=1x", "size<=1", "a" * 10_000):
        with pytest.raises(RecipeError) as caught:
            parse_gate_argument(text)
        assert caught.value.code == "CK-R015"


@pytest.mark.parametrize(
    ("measured", "text"),
    [
        (SIZE, "<= 1pp"),
        (SCORE, "<= 1MB"),
        (SIZE, "<= 1s"),
        (Measured(1.0, kind="bytes"), "<= 1x"),
        (Measured(1.0, kind="fraction"), ">= -1pp"),
    ],
)
def test_a_unit_that_does_not_fit(measured: Measured, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_gate("metric", text).check(measured)
    assert caught.value.code == "CK-G003"


def test_what_could_not_be_measured_does_not_pass() -> None:
    for text in ("<= 1x", ">= 1x", "<= 1%", ">= 0 abs"):
        assert not parse_gate("m", text).check(Measured(float("nan"), 1.0)).passed
    assert not parse_gate("m", "<= 1x").check(Measured(1.0, 0.0)).passed


def test_check_all_and_max_drop() -> None:
    gates = [parse_gate("size", "<= 0.25x"), parse_gate("quality", ">= -1pp")]
    verdicts = check_gates(gates, {"size": SIZE, "quality": SCORE}, max_drop=2.0)
    assert [verdict.passed for verdict in verdicts] == [True, False, True]
    assert verdicts[1].to_dict() == {
        "metric": "quality",
        "gate": ">= -1.0pp",
        "found": pytest.approx(-1.9),
        "unit": "pp",
        "passed": False,
    }
    assert str(verdicts[1]) == "quality >= -1.0pp missed: -1.9pp"
    with pytest.raises(RecipeError) as caught:
        check_gates([], {"size": SIZE}, max_drop=1.0)
    assert caught.value.code == "CK-G002"
    assert "evaluate" in caught.value.fix


@given(
    st.sampled_from(["<=", ">=", "<", ">"]),
    st.decimals(-(10**6), 10**6, places=3).map(float),
    st.sampled_from(["pp", "x", "%", "MB", "MiB", "ms", "s", "abs"]),
)
def test_text_round_trip(comparison: str, bound: float, unit: str) -> None:
    gate = Gate("latency.p50", comparison, bound, unit)
    assert parse_gate("latency.p50", gate.text) == gate
    assert parse_gate_argument(str(gate)) == gate
