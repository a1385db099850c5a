from __future__ import annotations

from typing import Any

from compresskit.suite.summary import markdown

CELL = "encode/b1/t128/th1"


def row(name: str, role: str = "candidate", **changes: Any) -> dict[str, Any]:
    latency = {"p50_ms": 10.0}
    if role != "baseline":
        latency |= {"ratio": 0.5, "ci": [0.45, 0.55], "verdict": "FASTER", "reason": ""}  # type: ignore[dict-item]
    return {
        "model": "minilm",
        "name": name,
        "point": "",
        "engine": "onnxruntime",
        "role": role,
        "size_bytes": 23_400_000,
        "cosine": {"documentation": {"mean": 0.99, "min": 0.9}},
        "quality": {
            "sts": {
                "metric": "spearman",
                "value": 82.03,
                "difference": -0.5,
                "difference_ci": [-1.0, 0.0],
                "reason": "",
            }
        },
        "latency": {CELL: latency},
        "error": None,
        **changes,
    }


def content(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "created": "2026-11-23T07:00:00+00:00",
        "command": "compresskit bench suite benchmarks/suites/peers-cpu.yaml -o out",
        "environment": {
            "cpu": "some CPU",
            "cores": 2,
            "load": [1.5, 1, 1],
            "packages": {"torch": "2.13.0", "nncf": "3.4.0", "rich": "1"},
            "git_commit": "0123456789abcdef",
        },
        "noise": {"aa_ratio": 1.001, "aa_ci": [0.99, 1.01], "fit": "fair"},
        "rows": rows,
        "skipped": [],
        "failed": [],
        **changes,
    }


def test_the_table_has_machine_commit_and_noise_above_it() -> None:
    text = markdown(content([row("fp32", "baseline"), row("int8")]))
    head = text.split("|")[0]
    for words in ("2026-11-23", "some CPU", "2 cores", "0123456789ab", "torch 2.13.0, nncf 3.4.0", "[0.990, 1.010]"):
        assert words in head
    assert "`compresskit bench suite benchmarks/suites/peers-cpu.yaml -o out`" in head


def test_a_row_shows_size_cosine_score_ratio_and_verdict() -> None:
    lines = markdown(content([row("fp32", "baseline"), row("int8")])).splitlines()
    assert lines[-1] == (
        "| int8 | 23.40 | 0.9900 (0.9000) | 82.03 | -0.50 [-1.00, +0.00] | 0.500 [0.450, 0.550] | FASTER |"
    )
    assert "| 10.0 ms | baseline |" in lines[-2]
    columns = {line.count("|") for line in lines if line.startswith("|")}
    assert len(columns) == 1


def test_what_was_not_measured_is_said() -> None:
    broken = row(
        "bits", error="the worker ended", size_bytes=None, cosine={}, quality={}, latency={CELL: {"p50_ms": None}}
    )
    text = markdown(
        content(
            [row("fp32", "baseline"), broken],
            skipped=[{"what": "NNCF", "why": "nncf is not installed"}],
            failed=[{"what": "minilm, int4", "code": "CK-M031", "why": "no"}],
        )
    )
    assert "| bits |  |  |  |  |  | could not be run: the worker ended |" in text
    assert "- NNCF was skipped: nncf is not installed" in text
    assert "- minilm, int4 failed: no (CK-M031)" in text
    assert markdown(content([])).strip().endswith("Nothing was measured.")


def test_the_clock_that_decided_is_said() -> None:
    quiet = markdown(content([row("fp32", "baseline"), row("int8")]))
    assert "CPU time" not in quiet
    busy = row("int8")
    busy["latency"][CELL]["reason"] = "by CPU time, as 90 % of samples were interrupted: the interval lies beyond 4 %"
    assert "go by the process's CPU time" in markdown(content([row("fp32", "baseline"), busy]))


def test_a_baseline_that_was_measured_often_stands_once() -> None:
    rows = [row("fp32", "baseline"), row("a"), row("fp32", "baseline"), row("b")]
    lines = [line for line in markdown(content(rows)).splitlines() if line.startswith("| fp32")]
    assert len(lines) == 1
