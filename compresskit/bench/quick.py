"""The quick comparison: several models timed in turns, in one process, with the baseline against itself as control.

Sequential timing on a shared machine is off by a quarter on average, interleaved CPU time by two per cent; so models
take turns, the order alternates, and a ratio within the control's own spread is called SAME.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compresskit.checkpoint.source import open_source
from compresskit.errors import UsageError

Run = Callable[[], None]
VOCABULARY_START = 5


@dataclass(frozen=True)
class Row:
    """One model at one shape. Times are CPU milliseconds; ``ratio`` is baseline time over this time."""

    model: str
    engine: str
    batch: int
    length: int
    p50_ms: float
    wall_p50_ms: float
    ratio: float
    low: float
    high: float
    verdict: str
    disk_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def compare(
    models: list[str],
    *,
    batch: int = 1,
    length: int = 128,
    rounds: int = 15,
    threads: int = 1,
    progress: Callable[[float, str], None] = lambda share, what: None,
) -> list[Row]:
    """Time ``models`` (checkpoints or ``.onnx`` files) against the first of them.

    Raises:
        UsageError: CK-B001 for fewer than one model or round.
    """
    if not models or rounds < 3:
        raise UsageError("CK-B001", "a comparison needs a model and at least 3 rounds")
    torch.set_num_threads(threads)
    opened = [_open(name, batch, length, threads) for name in models]
    runs = [opened[0][0], *(run for run, _, _ in opened)]
    cpu: list[list[float]] = [[] for _ in runs]
    wall: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for number in range(rounds):
        order = range(len(runs)) if number % 2 == 0 else range(len(runs) - 1, -1, -1)
        for index in order:
            wall_start, start = time.perf_counter(), time.process_time()
            runs[index]()
            cpu[index].append(1e3 * (time.process_time() - start))
            wall[index].append(1e3 * (time.perf_counter() - wall_start))
        progress((number + 1) / rounds, f"round {number + 1} of {rounds}")
    noise = _interval(cpu[0], cpu[1])
    rows = []
    for index, (name, (_, engine, size)) in enumerate(zip(models, opened, strict=True), 1):
        low, middle, high = _interval(cpu[0], cpu[index])
        verdict = "BASELINE" if index == 1 else _verdict((low, high), (noise[0], noise[2]))
        rows.append(
            Row(
                name,
                engine,
                batch,
                length,
                statistics.median(cpu[index]),
                statistics.median(wall[index]),
                middle,
                low,
                high,
                verdict,
                size,
            )
        )
    return rows


def _verdict(interval: tuple[float, float], noise: tuple[float, float]) -> str:
    low, high = interval
    floor, ceiling = min(noise[0], 1 / noise[1]), max(noise[1], 1 / noise[0])
    if low > ceiling:
        return "FASTER"
    if high < floor:
        return "SLOWER"
    return "SAME" if floor <= low and high <= ceiling else "AMBIGUOUS"


def _interval(base: list[float], other: list[float], resamples: int = 1000) -> tuple[float, float, float]:
    """Bootstrap 95 % interval and median of the paired ratio base/other."""
    logs = np.log(np.asarray(base) / np.asarray(other))
    generator = np.random.default_rng(0)
    picks = generator.integers(0, len(logs), size=(resamples, len(logs)))
    medians = np.median(logs[picks], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.exp(low)), float(np.exp(np.median(logs))), float(np.exp(high))


def _open(name: str, batch: int, length: int, threads: int) -> tuple[Run, str, int]:
    if name.endswith(".onnx"):
        return _open_onnx(Path(name), batch, length, threads)
    source = open_source(name)
    model = source.load_model()
    inputs = _inputs(int(model.config.get_text_config().vocab_size), batch, length)
    tensors = {key: torch.from_numpy(value) for key, value in inputs.items()}
    if model.config.is_encoder_decoder:
        tensors["decoder_input_ids"] = tensors["input_ids"][:, :8]

    def run() -> None:
        with torch.inference_mode():
            model(**tensors)

    return run, "torch", source.disk_bytes


def _open_onnx(path: Path, batch: int, length: int, threads: int) -> tuple[Run, str, int]:
    import onnxruntime

    if not path.is_file():
        raise UsageError("CK-B002", f"there is no file {path}", fix="make it with `compresskit export`")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {item.name for item in session.get_inputs()}
    inputs = {key: value for key, value in _inputs(1000, batch, length).items() if key in names}
    missing = names - set(inputs)
    if "token_type_ids" in missing:
        inputs["token_type_ids"] = np.zeros((batch, length), dtype=np.int64)
    if names - set(inputs):
        raise UsageError("CK-B003", f"{path} has inputs that the quick form can't fill: {sorted(names - set(inputs))}")
    return lambda: session.run(None, inputs), "onnxruntime", path.stat().st_size


def _inputs(vocabulary: int, batch: int, length: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    ids = generator.integers(min(VOCABULARY_START, vocabulary - 1), vocabulary, size=(batch, length), dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones((batch, length), dtype=np.int64)}
