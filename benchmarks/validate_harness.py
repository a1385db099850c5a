"""Does the harness hold its error rates on a busy machine?

Two questions, each answered by many runs while a busy loop runs on every core: how often does ``quick`` call a model
that is measured against itself FASTER or SLOWER, and how often does ``standard`` call a model with a tenth more layers
SLOWER? Runs are kept one by one, so that the script goes on where it was stopped.

    python benchmarks/validate_harness.py            # 60 runs against itself, 40 against the slower one
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compresskit.bench.environment import capture
from compresskit.bench.options import BenchOptions
from compresskit.bench.run import run

RESULTS = Path(__file__).parent / "results"
LAYERS = {"base": 20, "slower": 22}
LENGTH = 32


def make_models(folder: Path) -> dict[str, Path]:
    """Two random BERTs as ONNX files: the second has a tenth more layers."""
    import torch
    from transformers import BertConfig, BertModel

    from compresskit.export import export_onnx

    found = {}
    for name, layers in LAYERS.items():
        found[name] = folder / name / "model.onnx"
        if not found[name].is_file():
            torch.manual_seed(0)
            model = BertModel(
                BertConfig(
                    vocab_size=512,
                    hidden_size=128,
                    num_hidden_layers=layers,
                    num_attention_heads=4,
                    intermediate_size=512,
                    max_position_embeddings=128,
                ),
                add_pooling_layer=False,
            ).eval()
            model.save_pretrained(folder / name)
            export_onnx(model, found[name])
    return found


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """A busy loop on every core."""
    loops = []
    try:
        for core in sorted(os.sched_getaffinity(0)):
            code = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
            loops.append(subprocess.Popen([sys.executable, "-c", code]))
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def one_run(models: tuple[Path, Path], seed: int, profile: str) -> dict[str, Any]:
    """The headline of one run."""
    began = time.monotonic()
    options = BenchOptions(
        models=tuple(str(path) for path in models),
        profile=profile,
        lengths=(LENGTH,),
        seed=seed,
        onnx=False,
        details=False,
    )
    record = run(options)
    row = record.headline
    assert row is not None
    assert row.ci is not None
    return {
        "seed": seed,
        "ratio": row.ratio,
        "ci": list(row.ci),
        "guards": {name: [guard.ratio, *(guard.ci or ())] for name, guard in row.guards.items()},
        "verdict": row.verdict,
        "reason": row.reason,
        "decided_by": row.decided_by,
        "aa_ci": list(record.env.noise.aa_ci or ()),
        "blocks": len(record.blocks),
        "load": record.blocks[-1].load,
        "parent_cpu_share": record.parent_cpu_share,
        "seconds": round(time.monotonic() - began, 1),
    }


def upper_bound(hits: int, runs: int, level: float = 0.95) -> float:
    """Clopper and Pearson's one-sided upper bound of a rate."""
    low, high = hits / runs, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        tail = sum(math.comb(runs, k) * middle**k * (1 - middle) ** (runs - k) for k in range(hits + 1))
        low, high = (middle, high) if tail > 1 - level else (low, middle)
    return high


def summary(rows: list[dict[str, Any]], wanted: dict[str, int]) -> dict[str, Any]:
    """Counts, rates and whether the bars are held."""
    found: dict[str, Any] = {}
    for kind in wanted:
        verdicts = Counter(row["verdict"] for row in rows if row["kind"] == kind)
        runs = sum(verdicts.values())
        if runs:
            seconds = sorted(row["seconds"] for row in rows if row["kind"] == kind)
            found[kind] = {"runs": runs, "verdicts": dict(verdicts), "median_seconds": seconds[runs // 2]}
    if rows:
        found["largest_parent_cpu_share"] = round(max(row["parent_cpu_share"] for row in rows), 4)
    if "itself" in found:
        part = found["itself"]
        part["wrong"] = part["verdicts"].get("FASTER", 0) + part["verdicts"].get("SLOWER", 0)
        part["rate_upper_95"] = round(upper_bound(part["wrong"], part["runs"]), 4)
        part["bar"] = "at most 3 of 60 are wrong"
        part["held"] = part["wrong"] <= 3 * part["runs"] / 60
    if "slower" in found:
        part = found["slower"]
        part["detected"] = part["verdicts"].get("SLOWER", 0)
        part["bar"] = "at least 95 % are called SLOWER"
        part["held"] = part["detected"] >= 0.95 * part["runs"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--itself", type=int, default=60, help="runs of a model against itself")
    parser.add_argument("--slower", type=int, default=40, help="runs against the slower model")
    parser.add_argument("--profile", default="quick", help="of the runs against itself")
    parser.add_argument("--slower-profile", default="standard", help="of the runs against the slower model")
    parser.add_argument("--output", type=Path, default=RESULTS / "validation.json")
    parser.add_argument("--models", type=Path, help="keep the two models here")
    arguments = parser.parse_args()
    wanted = {"itself": arguments.itself, "slower": arguments.slower}
    journal = arguments.output.with_suffix(".jsonl")
    journal.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.is_file() else []
    with tempfile.TemporaryDirectory() as name:
        models = make_models(arguments.models or Path(name))
        pairs = {"itself": (models["base"], models["base"]), "slower": (models["base"], models["slower"])}
        profiles = {"itself": arguments.profile, "slower": arguments.slower_profile}
        with busy():
            for number in range(max(wanted.values())):
                for kind, count in wanted.items():
                    known = any(row["kind"] == kind and row["seed"] == number for row in rows)
                    if number >= count or known:
                        continue
                    row = {"kind": kind, **one_run(pairs[kind], number, profiles[kind])}
                    rows.append(row)
                    with journal.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps(row) + "\n")
                    print(kind, number, row["verdict"], row["guards"]["cpu_time"], row["reason"], flush=True)
    environment = capture(device="cpu").model_dump(mode="json")
    content = {
        "what": "headline verdicts with a busy loop on every core",
        "command": "python benchmarks/validate_harness.py",
        "profiles": profiles,
        "layers": LAYERS,
        "summary": summary(rows, wanted),
        "environment": {name: environment[name] for name in ("hash", "cpu", "packages", "git_commit")},
        "runs": rows,
    }
    arguments.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content["summary"], indent=1))


if __name__ == "__main__":
    main()
