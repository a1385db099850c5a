"""Bits against perplexity: rtn, hqq, awq and gptq on two trained language models.

    python -m benchmarks.gpt2_small build/gpt2_small
    python -m benchmarks.language_quantization --gpt2 build/gpt2_small --data ../shared/data --resume

Models: stories260K, a Llama of 260,032 weights (63 of its 126 stories calibrate, 63 are held out), and the GPT-2 of
4.2 million weights that ``benchmarks.gpt2_small`` trains (128 of its training texts calibrate, 256 of its held-out
texts are scored). Texts are cut to 128 tokens. All matrices of the blocks are quantized, those whose columns don't
divide into the groups with a scale a row; the table and the tied head stay as they are. For every method, number of
bits and size of groups: perplexity, and the mean KL divergence and the agreement of the first choice with the model in
float32, over the same positions. Seconds are processor time, one thread, with the statistics. ``order`` tells of every
number of bits whether gptq <= awq, hqq <= rtn holds, in perplexity and in divergence.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.midtd import store
from benchmarks.quantization_curve import compressed, perplexity
from compresskit.bench.environment import capture
from compresskit.calibrate.batches import tokenize
from compresskit.checkpoint.source import open_source
from compresskit.core.context import Batch
from compresskit.tasks.fidelity import compare, outputs

RESULTS = Path(__file__).parent / "results" / "language_quantization.json"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "rtn": ("quantization.rtn", {}),
    "hqq": ("quantization.hqq", {}),
    "awq": ("quantization.awq", {}),
    "gptq": ("quantization.gptq", {}),
}
BITS = (8, 4, 3, 2)
GROUPS = (32, 64)
LENGTH = 128
POSITIONS = 8192
CALIBRATE, HELD = 128, 256
EQUAL = 1e-3
"""Relative difference of perplexities that counts as none: at 8 bits all are equal but for noise of either sign."""


@dataclass
class Bench:
    """A model in float32, the batches that calibrate and those that are scored, and its own figures."""

    model: Any
    calibration: Sequence[Batch]
    held: Sequence[Batch]

    def __post_init__(self) -> None:
        self.reference = outputs(self.model, self.held, positions=POSITIONS)

    def fp32(self) -> dict[str, Any]:
        """Perplexity of the model as it is."""
        return {"perplexity": perplexity(self.model, self.held)}

    def row(self, label: str, bits: int, group: int) -> dict[str, Any]:
        """The model after one method."""
        name, options = METHODS[label]
        given = {**options, "bits": bits, "group": group}
        made = compressed(self.model, name, given, self.calibration, indivisible={"per": "channel"})
        model = made.pop("model")
        scores = compare(self.reference, model, self.held, "language", positions=POSITIONS)
        found = {"kl": scores["kl_mean"], "top1_agreement": scores["top1_agreement"]}
        return {"perplexity": perplexity(model, self.held), **{key: round(x, 6) for key, x in found.items()}, **made}


def bench_of(folder: Path, calibration: Sequence[str], held: Sequence[str], length: int = LENGTH) -> Bench:
    """The checkpoint in ``folder`` and its texts."""
    source = open_source(str(folder))
    model, tokenizer = source.load_model(dtype="float32"), source.load_tokenizer()
    return Bench(model, tokenize(calibration, tokenizer, model, length), tokenize(held, tokenizer, model, length))


def lines(path: Path) -> list[str]:
    """The texts of a file of JSON lines."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines() if line]


def stories(data: Path) -> Bench:
    """stories260K; the stories are its own."""
    folder = data / "models" / "stories260K"
    texts = lines(folder / "self_samples.jsonl")
    half = len(texts) // 2
    return bench_of(folder / "hf", texts[:half], texts[half:])


def gpt2(folder: Path) -> Bench:
    """What ``benchmarks.gpt2_small`` wrote."""
    return bench_of(folder, lines(folder / "train.jsonl")[:CALIBRATE], lines(folder / "heldout.jsonl")[:HELD])


def fill(name: str, bench: Bench, content: dict[str, Any], output: Path, bits: Iterable[int], groups: Iterable[int],
         labels: Iterable[str] = tuple(METHODS)) -> None:  # fmt: skip
    """Every row of one model that isn't there yet, each stored once it is made."""
    rows = content["rows"]
    jobs: dict[str, tuple[Any, ...]] = {f"{name}/fp32": ()}
    jobs |= {f"{name}/{m}/{b}/g{g}": (m, b, g) for g in groups for b in bits for m in labels}
    for key, arguments in jobs.items():
        if key not in rows:
            rows[key] = bench.row(*arguments) if arguments else bench.fp32()
            store(output, content)
            print(f"{time.strftime('%X')} {key}: {json.dumps(rows[key])}", flush=True)


def order(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each model, number of bits and size of groups whose four methods are there: which order they have.

    ``perplexity`` and ``kl``: gptq is no worse than awq or hqq, whichever is the better, and that no worse than rtn;
    perplexities within ``EQUAL`` of each other count as equal. ``within``: the perplexity of gptq over that of fp32.
    """
    found: dict[str, dict[str, Any]] = {}
    for key in rows:
        parts = key.split("/")
        if len(parts) != 4 or parts[1] != "gptq":
            continue
        of = {label: rows.get(f"{parts[0]}/{label}/{parts[2]}/{parts[3]}") for label in METHODS}
        if any(row is None for row in of.values()):
            continue
        held = {}
        for figure, slack in (("perplexity", 1 + EQUAL), ("kl", 1.0)):
            value = {label: row[figure] for label, row in of.items() if row is not None}
            middle = min(value["awq"], value["hqq"])
            held[figure] = value["gptq"] <= middle * slack and middle <= value["rtn"] * slack
        whole = rows[f"{parts[0]}/fp32"]["perplexity"]
        held["within"] = {label: round(row["perplexity"] / whole - 1, 5) for label, row in of.items() if row}
        found["/".join((parts[0], *parts[2:]))] = held
    return found


def settings() -> dict[str, Any]:
    """What must be equal for rows to stand beside each other."""
    made: dict[str, Any] = json.loads(
        json.dumps({"length": LENGTH, "positions": POSITIONS, "calibrate": CALIBRATE, "held": HELD, "methods": METHODS})
    )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds models/stories260K")
    parser.add_argument("--gpt2", type=Path, help="folder that benchmarks.gpt2_small wrote")
    parser.add_argument("--bits", type=int, nargs="+", default=list(BITS))
    parser.add_argument("--groups", type=int, nargs="+", default=list(GROUPS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    content: dict[str, Any] = {"settings": settings(), "models": {}, "rows": {}}
    if given.resume and given.output.exists():
        content = json.loads(given.output.read_text(encoding="utf-8"))
        if content["settings"] != settings():
            parser.error(f"{given.output} was made with other settings: leave out --resume")
    found = capture(device="cpu")
    content["environment"] = {"cpu": found.cpu["model"], "packages": found.packages, "threads": 1}
    jobs: list[tuple[str, Any, Path]] = []
    if given.data:
        jobs.append(("stories260K", stories, given.data))
    if given.gpt2:
        jobs.append(("gpt2_small", gpt2, given.gpt2))
        trained = json.loads((given.gpt2 / "training.json").read_text(encoding="utf-8"))
        if content["models"].setdefault("gpt2_small", trained) != trained:
            parser.error(f"{given.output} has rows of another gpt2_small: leave out --resume")
    for name, build, path in jobs:
        torch.manual_seed(0)
        fill(name, build(path), content, given.output, given.bits, given.groups, given.methods)
    content["order"] = order(content["rows"])
    store(given.output, content)
    print(json.dumps(content["order"], indent=1))


if __name__ == "__main__":
    main()
