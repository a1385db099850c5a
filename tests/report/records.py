"""Records for the tests of the page: figures follow from simulated samples, as those of a run do."""

from __future__ import annotations

import random
import statistics
from typing import Any

from compresskit.bench.blocks import Block, Slice
from compresskit.bench.record import (
    Arm,
    Cell,
    Comparison,
    Environment,
    Guard,
    Metric,
    ModelInfo,
    Noise,
    Notice,
    NotMeasured,
    Plan,
    Quality,
    Record,
    Verdict,
    unavailable,
)

HOSTILE = (
    "</td><script>alert(1)</script><img src=x onerror=alert(1)>\"'><svg onload=alert(1)>|`[x](javascript:alert(1))"
)
CELL = "encode/b1/t128/th1"
# name -> (engine, p50 ms, bytes, Spearman)
ARMS: dict[str, tuple[str, float, int, float]] = {
    "fp32": ("torch", 24.1, 90_868_376, 82.03),
    "fp32 onnx": ("onnxruntime", 13.4, 90_990_000, 82.03),
    "int8": ("torch", 17.2, 23_900_000, 81.96),
    "int8 onnx": ("onnxruntime", 5.9, 23_400_000, 81.7),
    "ffn 75 % + int8": ("onnxruntime", 5.6, 19_200_000, 80.1),
    "svd rank 192": ("torch", 22.6, 61_000_000, 76.4),
}


def steps() -> list[dict[str, Any]]:
    """Two steps as a report.json has them."""
    pruned = {
        f"encoder.layer.{i}.intermediate": {"kept": 1152, "of": 1536, "output_error": 0.03 + 0.012 * i}
        for i in range(6)
    }
    rounded = {
        f"encoder.layer.{i}.{part}": {
            "bits_per_weight": 8.0833,
            "bytes": [589824, 148992],
            "relative_error": 0.0061 + 0.0003 * i,
        }
        for i in range(6)
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "output.dense")
    }
    fidelity = {"cosine_mean": 0.981, "cosine_min": 0.93}
    common = {"sites": ["a"], "skipped": {}, "parameters": 20_900_000, "seconds": 3.0, "fidelity": fidelity}
    return [
        {**common, "method": "pruning.ffn", "bytes": 83_765_760, "details": pruned},
        {**common, "method": "quantization.int8", "bytes": 18_400_000, "details": rounded},
    ]


def parts(blocks: int = 6, *, shrink: float = 1.0) -> list[dict[str, Any]]:
    """Rows of a profile."""
    rows: list[dict[str, Any]] = [_part("embeddings.word_embeddings", "embedding", 11_720_000, 0.0, 0.1, 1.0)]
    for index in range(blocks):
        path = f"encoder.layer.{index}"
        rows.append(_part(path, "block", 1_774_000, 3.4e8 * shrink, 3.6 * shrink, shrink))
        rows.append(_part(f"{path}.attention", "attention", 591_000, 1.3e8, 1.4, shrink))
        rows.append(_part(f"{path}.intermediate", "ffn", 1_181_000, 2.1e8 * shrink, 2.1 * shrink, shrink))
    rows.append(_part("everything else", "other", 148_000, None, None, 1.0))
    return rows


def _part(path: str, kind: str, count: int, flops: float | None, spent: float | None, shrink: float) -> dict[str, Any]:
    held = int(4 * count * shrink)
    return {"path": path, "kind": kind, "parameters": count, "bytes": held, "flops": flops, "milliseconds": spent,
            "layers": {"Linear": 4}}  # fmt: skip


def record(*, blocks: int = 60, seed: int = 7, arms: dict[str, tuple[str, float, int, float]] | None = None) -> Record:
    """A finished run of the baseline, its control and five candidates, with raw samples."""
    chosen = arms or ARMS
    rng = random.Random(seed)
    base = next(iter(chosen))
    named = {base: chosen[base], f"{base} (control)": chosen[base], **chosen}
    times: dict[str, list[float]] = {name: [] for name in named}
    made = []
    started = 0.0
    for number in range(blocks):
        wave = 1.25 if 20 <= number < 26 else 1.0
        order = sorted(named, key=lambda _: rng.random())
        slices = []
        for position, name in enumerate(order):
            calls = [round(named[name][1] * wave * (1 + abs(rng.gauss(0, 0.015))), 4) for _ in range(5)]
            times[name] += calls
            started += 0.3
            slices.append(
                Slice(
                    arm=name, position=position, wall_ms=calls, cpu_ms=calls, flags=[0] * 5, started=round(started, 2)
                )
            )
        made.append(
            Block(id=f"b{number}", cell=CELL, replicate=number // 20, number=number, order=order, slices=slices)
        )
    everyone = [_arm(name, values, times[name], base, rng) for name, values in named.items()]
    return Record(
        complete=True,
        created="2026-11-22T11:00:00Z",
        version="0.1.0",
        command=["compresskit", "bench", "run", "fp32", "int8", "--profile", "standard", "-o", "out.json"],
        env=Environment(
            hash="sha256:1f2e",
            cpu={"model": "Xeon 8481C", "logical": 2, "governor": "performance", "load": [0.4, 0.5, 0.6]},
            system={"os": "Linux 6.8", "python": "3.11.9"},
            packages={"torch": "2.13.0", "onnxruntime": "1.31.1"},
            noise=Noise(aa_ratio=1.001, aa_ci=(0.985, 1.014), fit="fair", reasons=["load 1.7 on 2 CPUs"]),
        ),
        plan=Plan(
            profile="standard",
            replicates=3,
            stop="half_width<=0.02",
            stopped_by="half_width",
            cells=[Cell(id=CELL, scenario="encode", batch=1, length=128, threads=1, input_hash="sha256:77aa")],
            headline=CELL,
            task="stsb",
        ),
        arms=everyone,
        comparisons=[_compared(name, times, base) for name in named if name != base],
        blocks=made,
        warnings=[
            Notice(code="CK-B020", text="torch's fp32 is half as fast as ONNX Runtime's here: compare with both")
        ],
        not_measured=[NotMeasured(what="GPU memory", why="no device")],
    ).with_id()


def _arm(name: str, values: tuple[str, float, int, float], times: list[float], base: str, rng: random.Random) -> Arm:
    engine, _, size, spearman = values
    middle = statistics.median(times)
    control = name.endswith("(control)")
    pruned = name.startswith("ffn")
    return Arm(
        name=name,
        role="baseline" if name == base else "control" if control else "candidate",
        engine=engine,
        dtype="float32",
        model=ModelInfo(source=name, files={"model.safetensors": "sha256:00"}),
        metrics={
            "size.serve": Metric(value=float(size), unit="B", method="sum of files"),
            "energy.cpu": unavailable("J", "no RAPL counter"),
        },
        cells={
            CELL: {
                "latency.p50": Metric(
                    value=middle, unit="ms", ci=(middle * 0.985, middle * 1.02), level=0.95, n=len(times), method="wall"
                ),
                "latency.p99": unavailable("ms", f"need n>=459, have {len(times)}", n=len(times)),
            }
        },
        quality=None
        if control
        else Quality(
            task="stsb", metric="spearman", value=spearman, n=1379, ci=(spearman - 1.1, spearman + 1.0), level=0.95
        ),
        parts=parts() if name == base else parts(shrink=0.5) if pruned else [],
        steps=steps() if pruned else [],
    )


def _compared(name: str, times: dict[str, list[float]], base: str) -> Comparison:
    ratio = statistics.median(times[name]) / statistics.median(times[base])
    verdict: Verdict = "FASTER" if ratio < 0.98 else "SLOWER" if ratio > 1.02 else "SAME"
    low = min(times[name]) / min(times[base])
    return Comparison(
        a=base,
        b=name,
        cell=CELL,
        ratio=ratio,
        ci=(ratio * 0.975, ratio * 1.03),
        guards={"wall_min": Guard(ratio=low), "cpu_time": Guard(ratio=ratio * 1.01)},
        p=0.001,
        verdict=verdict,
        headline=name == "int8",
        control=name.endswith("(control)"),
        beyond_noise=ratio < 0.98,
    )
