"""stories260K, five layers, to a student of two: perplexity by distillation and by training on tokens alone.

    python -m benchmarks.language_distillation --data ../shared/data --seeds 1 2 3 --resume

The 126 stories are samples of the teacher itself. 80 train, 16 choose among the settings of each arm (seed 0), 30 are
held out and read once for each row. Every arm starts from the same student (first and last layer of the teacher) and
takes as many steps with as many texts a step; ``tokens, stopped early`` alone may take fewer. ``tokens`` is training on
the stories' tokens alone; ``sequence`` also sees only tokens, but those that the teacher writes anew behind the first
one of the stories; the others see the teacher's distributions. Each row is kept once it is whole. Seconds are process
time, one thread, with the teacher's share of it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.midtd import store
from compresskit import registry
from compresskit.calibrate.batches import tokenize
from compresskit.checkpoint.source import open_source
from compresskit.core.compressor import Compressor
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.methods.distillation._shared import Distillation, distil
from compresskit.train.written import TokenObjective

RESULTS = Path(__file__).parent / "results" / "language_distillation.json"
DROPPED = (1, 2, 3)
TRAIN, DEV = 80, 16
TRAINING = {"steps": 400, "batch": 4, "max_length": 128, "freeze_embeddings": False}

_WRITING = {"prompt": 8, "new_tokens": 32, "share": 0.5}
_SAMPLING = {"prompt": 1, "new_tokens": 127, "temperature": 1.0, "samples": 16}

ARMS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "tokens": ("tokens", [{"lr": lr} for lr in (1.5e-4, 3e-4, 6e-4, 1.2e-3)]),
    "tokens, stopped early": ("tokens", [{"lr": 2e-3, "steps": steps} for steps in (50, 100, 150)]),
    "logits": ("distillation.logits", [{"temperature": t, "lr": 3e-3} for t in (1.0, 2.0)]),
    "reverse_kl": (
        "distillation.reverse_kl",
        [{"temperature": t, "lr": lr} for t in (1.0, 2.0) for lr in (1.5e-3, 3e-3)],
    ),
    "gkd": ("distillation.gkd", [{**_WRITING, "beta": beta, "lr": lr} for beta in (0.1, 0.5) for lr in (1.5e-3, 3e-3)]),
    "sequence, greedy": (
        "distillation.sequence",
        [{"prompt": 8, "new_tokens": 120, "lr": lr} for lr in (1.5e-3, 3e-3)],
    ),
    "sequence": ("distillation.sequence", [{**_SAMPLING, "lr": lr} for lr in (1.5e-3, 3e-3)]),
}
"""Arm -> method and the settings that are tried."""


class Tokens(Distillation):
    """Training on the texts' own tokens, with the options of the methods; not registered."""

    name = "tokens"

    def apply(self, model: PreTrainedModel, sites: Any, context: Context) -> None:
        distil(self, model, sites, context, TokenObjective())


def step_of(arm: str, options: Mapping[str, Any], training: Mapping[str, Any]) -> Compressor:
    """The method of ``arm``."""
    name, _ = ARMS[arm]
    cls: type[Compressor] = Tokens if name == "tokens" else registry.method(name)
    return cls.model_validate({**training, **options})


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokenizer: Any, texts: Sequence[str], max_length: int) -> float:
    """exp of the mean of nats per predicted token, over all texts, each cut to ``max_length`` tokens."""
    nats, count = 0.0, 0
    for batch in tokenize(texts, tokenizer, model, max_length):
        predicted = int(batch["attention_mask"][:, 1:].sum())
        nats += float(TokenObjective().loss(model, batch, {})) * predicted
        count += predicted
    return math.exp(nats / count)


class Bench:
    """Teacher, texts and student, and what is measured with them."""

    def __init__(self, data: Path, training: dict[str, Any]) -> None:
        folder = data / "models" / "stories260K"
        source = open_source(str(folder / "hf"))
        self.tokenizer: Any = source.load_tokenizer()
        self.teacher = source.load_model(dtype="float32")
        lines = (folder / "self_samples.jsonl").read_text(encoding="utf-8").splitlines()
        stories = [json.loads(line)["text"] for line in lines]
        self.train, self.dev, self.held = stories[:TRAIN], stories[TRAIN : TRAIN + DEV], stories[TRAIN + DEV :]
        self.training = training
        self.student = copy.deepcopy(self.teacher)
        prune = registry.method("pruning.layers").model_validate({"drop": list(DROPPED)})
        prune.apply(self.student, resolve(self.student, prune).sites, Context())

    def score(self, model: PreTrainedModel, texts: Sequence[str]) -> float:
        """Perplexity of ``texts``."""
        return perplexity(model, self.tokenizer, texts, self.training["max_length"])

    def row(self, arm: str, options: Mapping[str, Any], seed: int, texts: Sequence[str]) -> dict[str, Any]:
        """Train the student by ``arm`` and read the perplexity of ``texts``."""
        student, step = copy.deepcopy(self.student), step_of(arm, options, self.training)
        began = time.process_time()
        with tempfile.TemporaryDirectory() as work:
            context = Context(
                seed=seed, tokenizer=self.tokenizer, teacher=lambda: self.teacher, texts=self.train, work=Path(work)
            )
            step.apply(student, resolve(student, step).sites, context)
        seconds = round(time.process_time() - began, 1)
        return {
            "options": dict(options),
            "perplexity": round(self.score(student, texts), 4),
            "train_perplexity": round(self.score(student, self.train), 4),
            "seconds": seconds,
        }


def fill(bench: Bench, content: dict[str, Any], seeds: Sequence[int], output: Path) -> None:
    """Every row that isn't there yet, each stored once it is made."""

    def once(part: str, name: str, *given: Any) -> dict[str, Any]:
        if name not in content[part]:
            content[part][name] = bench.row(*given)
            store(output, content)
            print(f"{time.strftime('%X')} {part} {name}: {content[part][name]}", flush=True)
        found: dict[str, Any] = content[part][name]
        return found

    for arm, (_, settings) in ARMS.items():
        tried = [once("tuning", f"{arm}/{n}", arm, options, 0, bench.dev) for n, options in enumerate(settings)]
        best = min(tried, key=lambda row: row["perplexity"])["options"]
        for seed in seeds:
            once("rows", f"{arm}/{seed}", arm, best, seed, bench.held)


def differing(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether rows made under ``old`` settings can't stand beside new ones; arms may have been added."""
    arms = any(new["arms"].get(arm) != given for arm, given in old["arms"].items())
    return arms or any(old[name] != new[name] for name in ("training", "dropped"))


def summary(content: dict[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Of each arm the mean perplexity, and its difference to ``tokens`` at each seed."""
    found = {}
    for arm in ARMS:
        values = [content["rows"][f"{arm}/{seed}"]["perplexity"] for seed in seeds]
        against = [content["rows"][f"tokens/{seed}"]["perplexity"] for seed in seeds]
        found[arm] = {
            "mean": round(statistics.mean(values), 4),
            "less_tokens": [round(ours - theirs, 4) for ours, theirs in zip(values, against, strict=True)],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds models/stories260K")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = json.loads(json.dumps({"training": TRAINING, "arms": ARMS, "dropped": DROPPED}))
    content: dict[str, Any] = {"settings": settings, "tuning": {}, "rows": {}}
    if given.resume and given.output.exists():
        content = json.loads(given.output.read_text(encoding="utf-8"))
        if differing(content["settings"], settings):
            parser.error(f"{given.output} was made with other settings: leave out --resume")
        content["settings"] = settings
    bench = Bench(given.data, dict(TRAINING))
    content["teacher"] = round(bench.score(bench.teacher, bench.held), 4)
    content["student_untrained"] = round(bench.score(bench.student, bench.held), 4)
    fill(bench, content, given.seeds, given.output)
    content["summary"] = summary(content, given.seeds)
    store(given.output, content)
    print(json.dumps(content["summary"], indent=1))


if __name__ == "__main__":
    main()
