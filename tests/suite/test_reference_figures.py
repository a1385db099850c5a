"""all-MiniLM-L6-v2 on STS-B in each engine: 82.03, as published."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.mark.slow
def test_sts_b_in_every_engine(project_root: Path, shared_data: Path, minilm_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("sts_engines", project_root / "benchmarks" / "sts_engines.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.scores(shared_data / "stsb" / "test.tsv")
    assert {"torch", "onnxruntime"} <= set(found)
    assert found == {engine: pytest.approx(82.03, abs=0.02) for engine in found}
