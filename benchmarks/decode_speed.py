"""Decoding of two language models with a cache in ONNX Runtime, against torch: CPU time per token.

    python benchmarks/decode_speed.py [--past 128] [--rounds 15] [--models gpt2 llama] [--arms ...] [--write]

The models have the shapes of GPT-2 small (12 layers, 768, a tied head over 50,257 tokens) and of a Llama of about 100M
with a head of its own; their weights are random, which changes no product's time. Each is compressed by the methods of
the library and exported with the profile ``fast``; its step file is then timed, one token after ``--past`` cached ones,
batch 1, one thread, processor time of the process, all files and torch in turns. Ratios: torch fp32 / file, medians.
``--work`` keeps the files, and takes those that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers as hf

from compresskit import registry
from compresskit.bench.environment import capture
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.export import export_onnx
from compresskit.export.generation import decode_inputs, decode_task
from compresskit.export.parity import session

RESULT = Path(__file__).parent / "results" / "decode_speed.json"
CALLS = 3
Steps = Sequence[tuple[str, dict[str, Any]]]
ARMS: dict[str, Steps] = {
    "fp32": (),
    "int8": (("quantization.int8", {}), ("quantization.embedding", {"bits": 8})),
    "rtn 8": (("quantization.rtn", {"bits": 8, "group": 32}), ("quantization.embedding", {"bits": 8})),
    "rtn 4": (("quantization.rtn", {"bits": 4, "group": 32}), ("quantization.embedding", {"bits": 4, "group": 32})),
    "rtn 4, g128": (
        ("quantization.rtn", {"bits": 4, "group": 128}),
        ("quantization.embedding", {"bits": 4, "group": 128}),
    ),
}


def gpt2() -> Any:
    """GPT-2 small, the head tied to the table."""
    return hf.GPT2LMHeadModel(hf.GPT2Config())


def llama() -> Any:
    """A Llama of about 100M weights: 8 layers of 768, 2,048 in the feed-forward parts, a vocabulary of 32,000."""
    config = hf.LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=12,
        num_key_value_heads=12,
        vocab_size=32_000,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    return hf.LlamaForCausalLM(config)


MODELS: dict[str, Callable[[], Any]] = {"gpt2": gpt2, "llama": llama}


def compressed(build: Callable[[], Any], steps: Steps) -> Any:
    """The model of seed 0 after ``steps``; an untied head gets the method of the other matrices."""
    torch.manual_seed(0)
    model = build().eval()
    for name, options in steps:
        methods = [(name, options)]
        if name != "quantization.embedding" and not model.config.tie_word_embeddings:
            methods.append((name, {**options, "targets": ["lm_head"]}))
        for method, chosen in methods:
            made = registry.method(method).model_validate(chosen)
            made.apply(model, resolve(model, made).sites, Context())
    return model


def exported(name: str, arm: str, folder: Path) -> dict[str, Any]:
    """The step file of one arm in ``folder``, made unless it is there, and what it holds."""
    target = folder / f"{name}-{arm.replace(' ', '').replace(',', '-')}"
    told = target / "step.json"
    if not told.is_file():
        report = export_onnx(compressed(MODELS[name], ARMS[arm]), target / "model.onnx")
        step = report.graphs["decoder_with_past"]
        row = {"file": step.file.name, "bytes": step.bytes, "operators": step.audit.operators}
        told.write_text(json.dumps(row), encoding="utf-8")
    found: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return found | {"file": target / found["file"]}


def measure(name: str, arms: Sequence[str], past: int, rounds: int, folder: Path) -> dict[str, Any]:
    """``arms`` of one model, in turns."""
    made = {}
    for arm in arms:
        made[arm] = exported(name, arm, folder)
        print(f"{name} {arm}: {made[arm]['bytes'] / 2**20:.1f} MiB", flush=True)
    reference = compressed(MODELS[name], ())
    batch = decode_inputs(reference, 1, past)
    task = decode_task(reference)
    calls: dict[str, Callable[[], Any]] = {"torch fp32": lambda: task.run(batch)}
    rows: dict[str, dict[str, Any]] = {"torch fp32": {}}
    feed = {key: value.numpy() for key, value in task.feed(batch).items()}
    for arm, row in made.items():
        run = session(row.pop("file"), threads=1)
        calls[arm] = lambda run=run: run.run(None, feed)  # type: ignore[misc]
        rows[arm] = row
    times = in_turns(calls, rounds)
    base = statistics.median(times["torch fp32"])
    for arm, row in rows.items():
        median = statistics.median(times[arm])
        row |= {"milliseconds": median * 1e3, "ratio": base / median}
        print(f"{name:6} {arm:12} {median * 1e3:8.2f} ms  {base / median:5.2f} x", flush=True)
    return rows


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time per call; every other round goes backwards."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for number in range(rounds):
        order = list(calls) if number % 2 == 0 else list(reversed(calls))
        for name in order:
            began = time.process_time()
            for _ in range(CALLS):
                calls[name]()
            times[name].append((time.process_time() - began) / CALLS)
    return times


def main() -> None:
    """Measure and print; with ``--write``, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--past", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--work", type=Path, help="folder that keeps the files")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"past": options.past, "rounds": options.rounds, "threads": 1, "models": {}}
    found = capture(device="cpu")
    result["environment"] = {"cpu": found.cpu["model"], "load": found.cpu["load"], "packages": found.packages}
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            work = options.work or Path(folder)
            result["models"][name] = measure(name, options.arms, options.past, options.rounds, work)
        if options.write:
            RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
