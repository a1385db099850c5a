"""Workers: errors come back typed, a killed one is told, waiting costs nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from compresskit.bench import pool
from compresskit.bench.doctor import write_probe
from compresskit.bench.pool import WorkerProcess, environment
from compresskit.errors import ResourceError, UsageError


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    made = WorkerProcess("m", threads=1, device="cpu")
    yield made
    made.close()


def test_all_workers_have_one_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = environment(2, "cpu")
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "2"
    assert found["PYTHONHASHSEED"] == "0"
    assert found["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in {**environment(1, "cuda")} or os.environ.get("CUDA_VISIBLE_DEVICES")


def test_errors_keep_their_type_and_the_worker_goes_on(worker: WorkerProcess, tmp_path: Path) -> None:
    settings = {"threads": 1, "device": "cpu", "dtype": None}
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(UsageError) as caught:
        worker.ask("load", name="onnxruntime", path=str(tmp_path / "x.onnx"), **settings)
    assert caught.value.code == "CK-B005"
    with pytest.raises(ResourceError) as other:
        worker.ask("nothing")
    assert other.value.code == "CK-B007"
    found = worker.ask("load", name="onnxruntime", path=str(write_probe(tmp_path / "p.onnx")), **settings)
    assert found["inputs"] == ["input_ids"]
    assert found["load_s"] > 0


def test_a_killed_worker_is_told(worker: WorkerProcess) -> None:
    os.kill(worker.process.pid, signal.SIGKILL)
    with pytest.raises(ResourceError) as caught:
        worker.ask("nothing")
    assert caught.value.code == "CK-B008"
    assert "-9" in caught.value.what


def test_a_worker_that_does_not_answer(worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    os.kill(worker.process.pid, signal.SIGSTOP)
    try:
        before = time.process_time()
        with pytest.raises(ResourceError) as caught:
            worker.ask("nothing", timeout=1.0)
        assert caught.value.code == "CK-B008"
        assert time.process_time() - before < 0.05  # waited without spinning
    finally:
        os.kill(worker.process.pid, signal.SIGCONT)


def test_what_a_library_prints_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("print('hello from a library')\nraise ImportError('broken')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = WorkerProcess("m", threads=1, device="cpu")
    try:
        with pytest.raises(UsageError) as caught:
            made.ask("load", name="onnxruntime", path="x.onnx", threads=1, device="cpu", dtype=None)
        assert caught.value.code == "CK-B004"
    finally:
        made.close()
    assert pool.STARTING > 60
