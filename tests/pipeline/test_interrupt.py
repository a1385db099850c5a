"""F19: SIGTERM and SIGINT between and within the steps of a real process; the output that exists stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compresskit import pipeline
from tests.pipeline.conftest import recipe

STEPS = recipe({"pruning.ffn": {"keep": 0.5}}, "quantization.int8")
PATIENCE = 120.0


def _state(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _command(source: Path, output: Path, *more: str) -> list[str]:
    script = "from compresskit.cli.main import console_script; console_script()"
    words = ["apply", str(output.parent / "recipe.json"), "--model", str(source), "--output", str(output), "--json"]
    return [sys.executable, "-c", script, *words, *more]


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} didn't come"
        time.sleep(0.05)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("numbers", [(signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)], ids=["term", "int-twice"])
def test_f19_stopped_by_a_signal_between_steps_and_resumed(
    source: Path, tmp_path: Path, numbers: tuple[signal.Signals, ...]
) -> None:
    output = tmp_path / "out"
    (tmp_path / "recipe.json").write_text(json.dumps(STEPS))
    pipeline.apply(source, STEPS, output)
    before = _state(output)
    slow = {**os.environ, "CK_FAULT": "step.1.finished:slow", "CK_FAULT_SECONDS": str(PATIENCE)}
    process = subprocess.Popen(
        _command(source, output, "--overwrite"), env=slow, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    _wait_for(tmp_path / "out.ck-work" / "state.json", process)
    for number in numbers:
        process.send_signal(number)
    printed, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 5, said
    assert _state(output) == before
    if len(numbers) == 1:
        assert json.loads(printed)["error"]["code"] == "CK-U006"
        assert "--resume" in said + printed
    resumed = subprocess.run(
        _command(source, output, "--overwrite", "--resume"), capture_output=True, text=True, check=True
    )
    assert json.loads(resumed.stdout)["reload_max_abs_diff"] == 0.0
    assert _state(output)["model.safetensors"] == before["model.safetensors"]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "recipe.json"]
