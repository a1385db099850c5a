"""Time and memory of GPTQ against depth: a GPT-2-small-shaped model with random weights in 6, 12 and 24 layers.

4 bits in groups of 32, on 128 texts of 512 random tokens by default. Each depth runs in a process of its own, on one
thread. Peak memory is that of the process above what it took after imports; times are of the processor, so that other
work on the machine counts little. Results are written after every depth, and depths that are there aren't run again.

    python benchmarks/gptq_scale.py
    python benchmarks/gptq_scale.py --samples 16 --output short.json
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "gptq_scale.json"
LAYERS = (6, 12, 24)
LENGTH = 512


def memory(field: str) -> int:
    """Bytes that Linux reports of this process: ``VmRSS`` now, ``VmHWM`` the most so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(layers: int, samples: int, batch_size: int) -> dict[str, Any]:
    """Compress a model of ``layers`` blocks in this process."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from compresskit import registry
    from compresskit.calibrate.batches import random_batches
    from compresskit.calibrate.blocks import BlockCalibration
    from compresskit.core.context import Context
    from compresskit.core.targets import resolve

    torch.set_num_threads(1)
    torch.manual_seed(0)
    method = registry.method("quantization.gptq").model_validate({"bits": 4, "group": 32})
    after_imports = memory("VmRSS")
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers)).eval()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    batches = random_batches(model, samples=samples, max_length=LENGTH, batch_size=batch_size, ragged=False)
    walk = BlockCalibration(batches)
    context = Context(calibration=walk)
    sites = resolve(model, method).sites
    wall, processor = time.perf_counter(), time.process_time()
    for block in dict.fromkeys(site.block for site in sites):
        if block is not None:
            walk.enter(model, block)
        method.apply(model, [site for site in sites if site.block == block], context)
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    peak = memory("VmHWM") - after_imports
    return {
        "layers": layers,
        "tokens": [samples, LENGTH],
        "batch_size": batch_size,
        "weight_bytes": weights,
        "peak_bytes": peak,
        "peak_over_weights": round(peak / weights, 3),
        "processor_seconds": round(processor, 1),
        "wall_seconds": round(wall, 1),
        "matrices": len(sites),
        "to_nearest": sum("fallback" in detail for detail in context.details.values()),
    }


def exponent(rows: list[dict[str, Any]]) -> float | None:
    """b of the least-squares line log seconds = a + b log layers; None for a single depth."""
    if len(rows) < 2:
        return None
    points = [(math.log(row["layers"]), math.log(row["processor_seconds"])) for row in rows]
    centre = [sum(values) / len(points) for values in zip(*points, strict=True)]
    up = sum((x - centre[0]) * (y - centre[1]) for x, y in points)
    return round(up / sum((x - centre[0]) ** 2 for x, _ in points), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    parser.add_argument("--samples", type=int, default=128, help="texts of 512 tokens")
    parser.add_argument("--batch-size", type=int, default=1, help="texts in a pass; memory grows with them")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--here", action="store_true", help="measure one depth in this process and print it")
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.layers[0], arguments.samples, arguments.batch_size)))
        return
    found = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {"depths": []}
    for layers in arguments.layers:
        if any(row["layers"] == layers and row["tokens"][0] == arguments.samples for row in found["depths"]):
            continue
        own = ["--here", "--layers", str(layers), "--samples", str(arguments.samples)]
        command = [sys.executable, __file__, *own, "--batch-size", str(arguments.batch_size)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        found["depths"] = sorted([*found["depths"], row], key=lambda each: each["layers"])
        found["exponent"] = exponent([each for each in found["depths"] if each["tokens"] == row["tokens"]])
        arguments.output.parent.mkdir(exist_ok=True)
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
