"""GPTQ beside llm-compressor's: divergence, perplexity and processor time at the same bits, groups and calibration.

    python -m venv build/peer && build/peer/bin/pip install llmcompressor
    python -m benchmarks.gpt2_small build/gpt2_small
    python -m benchmarks.gptq_peers --peer-python build/peer/bin/python --gpt2 build/gpt2_small --data ../shared/data
    python -m benchmarks.gptq_peers … --models gpt2_small --resume     # what isn't there yet, of one model
    python -m benchmarks.gptq_peers … --resume --again                 # after a change: ours, and all times anew

Models and held-out texts are those of ``benchmarks.language_quantization``. Every round draws other 32 windows of 128
tokens from the texts that calibrate; both sides get the very same, in batches of 8. Groups of 32, with zero points,
in all matrices of the blocks; a scale a row where the columns don't divide. Ours has its defaults; the peer takes each
of its settings in turn, ``minmax static`` is its default. Each side has a resident process of one thread that is warm,
and they take turns. ``summary`` has ours over the peer's: below 1 is better. ``best`` is the setting of the peer with
the lowest figure, chosen after the fact.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import gptq_peer_process
from benchmarks.gptq_peers_table import summary, table
from benchmarks.language_quantization import CALIBRATE, POSITIONS, Bench, gpt2, lines, stories
from benchmarks.midtd import store
from benchmarks.quantization_curve import compressed, perplexity
from compresskit import registry
from compresskit.bench.environment import capture
from compresskit.checkpoint.source import open_source
from compresskit.core.targets import resolve
from compresskit.core.weights import view
from compresskit.tasks.fidelity import compare

RESULTS = Path(__file__).parent / "results" / "gptq_peers.json"
OURS = "ours"
METHOD = "quantization.gptq"
PEERS: dict[str, dict[str, Any]] = {
    f"{label} {order}": {"observer": observer, "actorder": None if order == "none" else order}
    for label, observer in (("minmax", "memoryless_minmax"), ("mse", "memoryless_mse"), ("imatrix", "imatrix_mse"))
    for order in ("static", "none")
}
BITS = (8, 4, 3)
GROUP = 32
WINDOWS, LENGTH, BATCH = 32, 128, 8
ROUNDS = 3
TIMES = ("cpu_seconds", "wall_seconds")

Ask = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass
class Subject:
    """A model of the benchmark: its folder, what scores it, and the texts that calibrate."""

    folder: Path
    bench: Bench
    texts: Sequence[str]

    def windows(self, seed: int, count: int = WINDOWS, length: int = LENGTH) -> list[list[int]]:
        """``count`` sequences of ``length`` tokens: the texts in an order of ``seed``, each begun by its first token.

        Raises:
            ValueError: the texts are too short.
        """
        tokenizer = open_source(str(self.folder)).load_tokenizer()
        assert tokenizer is not None
        texts = list(self.texts)
        random.Random(seed).shuffle(texts)
        ids: list[int] = []
        for text in texts:
            ids += [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
            if len(ids) >= count * length:
                return [ids[start : start + length] for start in range(0, count * length, length)]
        raise ValueError(f"{len(texts)} texts have {len(ids)} tokens, not {count * length}")

    def groups(self, group: int = GROUP) -> dict[str, int | None]:
        """The matrices of the blocks in order, each with the columns that share a scale; None: a row."""
        model = self.bench.model
        found = resolve(model, registry.method(METHOD).model_validate({"per": "channel"})).sites
        return {
            site.path: group if view(model, site.path).in_features % group == 0 else None
            for site in found
            if site.block
        }

    def scores(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """Divergence, agreement and perplexity of the model with ``weights`` in the place of its own."""
        model = copy.deepcopy(self.bench.model)
        for path, weight in weights.items():
            view(model, path).assign(weight)
        found = compare(self.bench.reference, model, self.bench.held, "language", positions=POSITIONS)
        scored = {"kl": round(found["kl_mean"], 8), "top1_agreement": round(found["top1_agreement"], 6)}
        return {**scored, "perplexity": perplexity(model, self.bench.held)}


def ours(job: dict[str, Any]) -> gptq_peer_process.Timed:
    """What ``gptq_peer_process.peer`` does, by this project."""
    model: Any = open_source(job["model"]).load_model(dtype="float32")
    batches = gptq_peer_process.batches(job)
    size = next(size for size in job["groups"].values() if size is not None)
    options = {"bits": job["bits"], "group": size, **job["settings"]}

    def compress() -> dict[str, Tensor]:
        made = compressed(model, METHOD, options, batches, indivisible={"per": "channel"})["model"]
        return {path: made.get_submodule(path).weight for path in job["groups"]}

    return compress


@contextmanager
def process(command: Sequence[str]) -> Iterator[Ask]:
    """A resident process that answers jobs, see ``gptq_peer_process``; it ends with the block.

    Raises:
        RuntimeError: it ended before it answered; what it said is on stderr.
    """
    quiet = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    running = subprocess.Popen(
        list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **quiet}
    )
    assert running.stdin is not None
    assert running.stdout is not None
    given, answers = running.stdin, running.stdout

    def ask(job: dict[str, Any]) -> dict[str, Any]:
        answer = ""
        with suppress(BrokenPipeError):
            given.write(json.dumps(job) + "\n")
            given.flush()
            answer = answers.readline()
        if not answer:
            raise RuntimeError(f"{command[0]} ended with {running.wait()} on {job}")
        found: dict[str, Any] = json.loads(answer)
        return found

    try:
        yield ask
    finally:
        with suppress(BrokenPipeError):
            given.close()
        running.wait()
        answers.close()


def check_levels(weights: dict[str, Tensor], groups: dict[str, int | None], bits: int) -> None:
    """Raises ValueError if a matrix is missing, or some scale has more than 2^``bits`` values."""
    for path, size in groups.items():
        parts = weights[path].unflatten(-1, (-1, size or weights[path].shape[1])).sort(-1).values
        levels = 1 + int((parts.diff(dim=-1) != 0).sum(-1).max())
        if levels > 2**bits:
            raise ValueError(f"{path} has {levels} values a scale, more than {bits} bits give")


def outdated(row: dict[str, Any], arm: str) -> dict[str, Any]:
    """What a change of this project leaves of ``row``: the peer's scores."""
    return {} if arm == OURS else {name: value for name, value in row.items() if name not in TIMES}


def fill(name: str, subject: Subject, content: dict[str, Any], output: Path, asks: dict[str, Ask], rounds: int,
         bits: Sequence[int], work: Path) -> None:  # fmt: skip
    """Every row of one model that isn't whole, each stored once it is made; ``asks``: one a side, ours and the peer."""
    arms: dict[str, dict[str, Any]] = {OURS: {}, **PEERS}
    groups, cold = subject.groups(), set(asks)
    for draw in range(rounds):
        ids = work / f"{name}-{draw}.json"
        ids.write_text(json.dumps(subject.windows(draw)), encoding="utf-8")
        for number in bits:
            for arm in arms:
                row = content["rows"].setdefault(f"{name}/{number}/{arm}/{draw}", {})
                if TIMES[0] in row:
                    continue
                side = OURS if arm == OURS else "peer"
                job = {"model": str(subject.folder), "ids": str(ids), "batch": BATCH, "bits": number, "groups": groups}
                job |= {"settings": arms[arm], "output": str(work / f"{side}.safetensors")}
                if side in cold:
                    asks[side](job)
                    cold.remove(side)
                took = asks[side](job)
                if "kl" not in row:
                    weights = load_file(job["output"])
                    check_levels(weights, groups, number)
                    row.update(subject.scores(weights))
                row.update(took)
                store(output, content)
                print(f"{time.strftime('%X')} {name}/{number}/{arm}/{draw}: {json.dumps(row)}", flush=True)


def settings() -> dict[str, Any]:
    """What must be equal for rows to stand beside each other."""
    sizes = {"windows": WINDOWS, "length": LENGTH, "batch": BATCH, "group": GROUP, "positions": POSITIONS}
    made: dict[str, Any] = json.loads(json.dumps({**sizes, "calibrate": CALIBRATE, "peers": PEERS}))
    return made


def versions(python: str) -> dict[str, str]:
    """Of the packages that the peer's Python has."""
    names = ("llmcompressor", "compressed-tensors", "torch", "transformers")
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    told: dict[str, str] = json.loads(found)
    return told


def subjects(given: argparse.Namespace) -> dict[str, Callable[[], Subject]]:
    """What builds each model whose files are given."""
    found: dict[str, Callable[[], Subject]] = {}
    if given.data:
        folder = given.data / "models" / "stories260K"
        texts = lines(folder / "self_samples.jsonl")
        found["stories260K"] = lambda: Subject(folder / "hf", stories(given.data), texts[: len(texts) // 2])
    if given.gpt2:
        found["gpt2_small"] = lambda: Subject(given.gpt2, gpt2(given.gpt2), lines(given.gpt2 / "train.jsonl"))
    return {name: build for name, build in found.items() if given.models is None or name in given.models}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="the Python of an environment with llmcompressor")
    parser.add_argument("--data", type=Path, help="folder that holds models/stories260K")
    parser.add_argument("--gpt2", type=Path, help="folder that benchmarks.gpt2_small wrote")
    parser.add_argument("--models", nargs="+", choices=("stories260K", "gpt2_small"), help="by default all given")
    parser.add_argument("--bits", type=int, nargs="+", default=list(BITS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--again", action="store_true", help="with --resume: ours, and all times, are taken anew")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    return parser


def opened(given: argparse.Namespace, parser: argparse.ArgumentParser, names: Sequence[str]) -> dict[str, Any]:
    """The file of results: new, or as it was but for the rows that are made again."""
    content: dict[str, Any] = {"settings": settings(), "models": {}, "rows": {}}
    if given.resume and given.output.exists():
        content = json.loads(given.output.read_text(encoding="utf-8"))
        if content["settings"] != settings():
            parser.error(f"{given.output} was made with other settings: leave out --resume")
        for key, row in content["rows"].items():
            model, number, arm, _ = key.split("/")
            if given.again and model in names and int(number) in given.bits:
                content["rows"][key] = outdated(row, arm)
    if "gpt2_small" in names:
        trained = json.loads((given.gpt2 / "training.json").read_text(encoding="utf-8"))
        if content["models"].setdefault("gpt2_small", trained) != trained:
            parser.error(f"{given.output} has rows of another gpt2_small: leave out --resume")
    return content


def main() -> None:
    parser = arguments()
    given = parser.parse_args()
    if given.ours:
        gptq_peer_process.serve(ours)
        return
    if given.table:
        print(table(json.loads(given.output.read_text(encoding="utf-8"))["summary"]))
        return
    if not given.peer_python:
        parser.error("--peer-python is needed")
    torch.set_num_threads(1)
    jobs = subjects(given)
    content = opened(given, parser, list(jobs))
    found = capture(device="cpu")
    content["environment"] = {"cpu": found.cpu["model"], "packages": found.packages, "threads": 1}
    content["environment"]["peer"] = versions(given.peer_python)
    commands = {
        OURS: [sys.executable, "-m", "benchmarks.gptq_peers", "--ours"],
        "peer": [given.peer_python, gptq_peer_process.__file__],
    }
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        asks = {side: stack.enter_context(process(command)) for side, command in commands.items()}
        for name, build in jobs.items():
            fill(name, build(), content, given.output, asks, given.rounds, given.bits, work)
    content["summary"] = summary(content["rows"])
    store(given.output, content)
    print(table(content["summary"]))


if __name__ == "__main__":
    main()
