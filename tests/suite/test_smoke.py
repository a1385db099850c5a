"""The suite that continuous integration runs: MiniLM, one recipe of two steps, from the file to the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compresskit.cli.main import main


@pytest.mark.slow
def test_the_smoke_suite_runs(
    project_root: Path,
    minilm_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMPRESSKIT_BENCH_LOCK", str(tmp_path / "lock"))
    suite = project_root / "benchmarks" / "suites" / "smoke.yaml"
    status = main(["bench", "suite", str(suite), "-o", str(tmp_path / "out"), "--quiet", "--json"])
    assert status == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads((tmp_path / "out" / "smoke.json").read_text())
    rows = {row["name"]: row for row in printed["rows"]}
    assert list(rows) == ["fp32, onnxruntime", "fp32, torch", "ffn-int8, onnxruntime"]
    small = rows["ffn-int8, onnxruntime"]
    assert small["size_bytes"] < 0.75 * rows["fp32, onnxruntime"]["size_bytes"]
    assert small["cosine"]["everyday"]["mean"] > 0.9
    assert rows["fp32, torch"]["quality"]["sts"]["difference"] == pytest.approx(0, abs=0.05)
    assert small["quality"]["sts"]["value"] > 80
