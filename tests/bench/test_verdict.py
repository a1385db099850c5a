"""The verdict's rules, one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compresskit.bench.verdict import Evidence, Interval, judge

FINE = Interval(1.10, 1.08, 1.12)
CALM = Evidence(
    witnesses={"wall": FINE, "wall_min": FINE, "cpu_time": FINE},
    decided_by="wall",
    disturbed=0.01,
    blocks=50,
    processes=5,
    p=0.001,
    noise=Interval(1.0, 0.99, 1.01),
    delta=0.02,
    level=0.95,
)


def changed(**witnesses: Interval) -> Evidence:
    return replace(CALM, witnesses={**CALM.witnesses, **witnesses})


def test_all_witnesses_agree() -> None:
    assert judge(CALM)[0] == "SLOWER"
    faster = {name: Interval(0.9, 0.88, 0.92) for name in CALM.witnesses}
    assert judge(replace(CALM, witnesses=faster))[0] == "FASTER"


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (changed(wall=Interval(1.05, 1.019, 1.09)), "reaches into the margin"),
        (changed(cpu_time=Interval(1.05, 0.99, 1.1)), "CPU time doesn't show it"),
        (changed(cpu_time=Interval(1.01, 1.005, 1.015)), "CPU time doesn't show it"),
        (changed(wall_min=Interval(0.9, 0.88, 0.92)), "the least wall time doesn't show it"),
        (replace(CALM, p=0.06), "not significant"),
        (replace(CALM, noise=Interval(1.05, 0.98, 1.11)), "differs as much from itself"),
    ],
)
def test_one_doubt_is_enough(evidence: Evidence, reason: str) -> None:
    word, why = judge(evidence)
    assert word == "AMBIGUOUS"
    assert reason in why


def test_same_needs_the_whole_interval_and_no_objection() -> None:
    within = Interval(1.0, 0.985, 1.015)
    assert judge(replace(CALM, witnesses=dict.fromkeys(CALM.witnesses, within)))[0] == "SAME"
    word, why = judge(replace(CALM, witnesses={"wall": within, "wall_min": within, "cpu_time": FINE}))
    assert word == "AMBIGUOUS"
    assert "CPU time lies outside" in why


def test_cpu_time_decides_where_the_clock_is_disturbed() -> None:
    vague = Interval(1.08, 0.9, 1.3)
    disturbed = replace(
        CALM,
        witnesses={"wall": vague, "wall_min": vague, "cpu_time": FINE},
        decided_by="cpu_time",
        disturbed=0.7,
        noise=None,
    )
    assert judge(disturbed)[0] == "SLOWER"
    other_side = replace(disturbed, witnesses={**disturbed.witnesses, "wall": Interval(0.97, 0.85, 1.1)})
    assert judge(other_side)[0] == "AMBIGUOUS"
    contradicted = replace(disturbed, witnesses={**disturbed.witnesses, "wall_min": Interval(0.9, 0.85, 0.95)})
    assert "points the other way" in judge(contradicted)[1]


@pytest.mark.parametrize("few", [{"processes": 2}, {"decided_by": "cpu_time", "disturbed": 0.5}])
def test_the_margin_is_doubled_where_less_is_known(few: dict[str, object]) -> None:
    near = Interval(1.05, 1.03, 1.07)
    sure = replace(CALM, witnesses=dict.fromkeys(CALM.witnesses, near))
    assert judge(sure)[0] == "SLOWER"
    assert judge(replace(sure, **few))[0] == "AMBIGUOUS"  # type: ignore[arg-type]


def test_few_blocks_are_invalid() -> None:
    assert judge(replace(CALM, blocks=3))[0] == "INVALID"
