"""Is this machine fit for timings? What is known of it, and a run of the harness on the same work twice."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import psutil

from compresskit.bench import energy
from compresskit.bench.environment import processor
from compresskit.bench.options import BenchOptions
from compresskit.bench.record import Noise
from compresskit.bench.run import run
from compresskit.bench.schedule import PROFILES

Level = Literal["ok", "note", "warn"]

_SIZE, _LAYERS, _TOKENS = 256, 8, 128
_HOT = 85.0


@dataclass(frozen=True)
class Line:
    """One finding. ``fix`` says what to do about it."""

    level: Level
    what: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Findings, and the interval of the ratio of the same work to itself."""

    lines: list[Line]
    noise: tuple[float, float]
    fit: str
    reasons: list[str]
    blocks: int
    parent_cpu_share: float | None


def diagnose(*, seconds: float = 5.0, threads: int = 1) -> Diagnosis:
    """Look, then measure for about ``seconds`` an arm.

    Raises:
        ResourceError: CK-B012, another benchmark runs.
    """
    lines = machine_lines(threads)
    with tempfile.TemporaryDirectory(prefix="compresskit-doctor-") as name:
        model = write_probe(Path(name) / "probe.onnx")
        profile = replace(PROFILES["quick"], seconds=seconds, most_blocks=200, limit=20 * seconds)
        options = BenchOptions(
            models=(str(model),), threads=(threads,), lengths=(_TOKENS,), custom=profile, onnx=False, details=False
        )
        record = run(options)
    noise: Noise = record.env.noise
    return Diagnosis(
        lines, noise.aa_ci or (0.0, float("inf")), noise.fit, noise.reasons, len(record.blocks), record.parent_cpu_share
    )


def machine_lines(threads: int) -> list[Line]:
    """What can be read off the system."""
    found = processor()
    usable = min(found["allowed"] or found["logical"] or 1, found["quota"] or float("inf"))
    lines = [Line("ok", f"{found['model']}, {usable:g} usable cores")]
    load = (found["load"] or [0.0])[0]
    if load > 0.25 * usable:
        lines.append(Line("warn", f"load average {load:.1f}", "wait for other work to end"))
    else:
        lines.append(Line("ok", f"load average {load:.1f}"))
    if threads > usable:
        lines.append(Line("warn", f"{threads} threads on {usable:g} cores", "--threads with fewer"))
    if found["quota"]:
        lines.append(
            Line("warn", f"a quota of {found['quota']:g} cores", "a quota stops threads in the middle of a call")
        )
    if found["governor"] not in (None, "performance"):
        lines.append(Line("warn", f"frequency governor {found['governor']}", "cpupower frequency-set -g performance"))
    if found["turbo"]:
        lines.append(Line("note", "turbo is on: clocks vary with temperature", "switch it off for `publish`"))
    if found["steal_percent"]:
        lines.append(Line("warn", f"{found['steal_percent']:.1f} % of the time goes to other virtual machines"))
    if found["temperature"] and found["temperature"] > _HOT:
        lines.append(Line("warn", f"{found['temperature']:.0f} °C", "let it cool: hot processors slow down"))
    if psutil.swap_memory().percent > 10:
        lines.append(Line("warn", "memory is swapped out", "close other programs"))
    counter, why = energy.counter("cpu")
    lines.append(Line("ok", f"energy: {counter.name}") if counter else Line("note", f"energy can't be counted: {why}"))
    return lines


def write_probe(path: Path) -> Path:
    """A small ONNX file of matrix products, for measuring the machine rather than a model."""
    from onnx import TensorProto, helper, numpy_helper, save

    generator = np.random.default_rng(0)
    scale = 1 / np.sqrt(_SIZE)
    weights = [(scale * generator.normal(size=(_SIZE, _SIZE))).astype(np.float32) for _ in range(_LAYERS + 1)]
    tensors = [numpy_helper.from_array(weight, f"w{number}") for number, weight in enumerate(weights)]
    nodes = [helper.make_node("Gather", ["w0", "input_ids"], ["x0"])]
    for number in range(1, _LAYERS + 1):
        nodes.append(helper.make_node("MatMul", [f"x{number - 1}", f"w{number}"], [f"m{number}"]))
        output = "last_hidden_state" if number == _LAYERS else f"x{number}"
        nodes.append(helper.make_node("Tanh", [f"m{number}"], [output]))
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])]
    outputs = [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", _SIZE])]
    graph = helper.make_graph(nodes, "probe", inputs, outputs, tensors)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(path))
    return path
