"""The benchmark of MiDTD: flips, tuned arms, paired tables, and a cell from data to rows."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest
import torch

from benchmarks.midtd import STUDENT, Cell, flipped, load, store, subset
from benchmarks.midtd_arms import ARMS, BANDS, TUNED_KD, entropies, fixed_of_equal_median
from benchmarks.midtd_report import demands, likelihoods, paired, plot, softness, table
from compresskit.models.relation import EntityStartForRelationExtraction
from compresskit.numerics.temperatures import entropy
from compresskit.tasks.relation_extraction import collate_relations, read_instances
from compresskit.train.policies import Band, Fixed
from tests import models
from tests.tasks.relation_extraction.examples import RELATIONS, records, write


def test_as_many_labels_are_flipped_as_asked() -> None:
    labels = torch.randint(0, 5, (20_000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(flipped(labels, 5, 0, 1), labels)
    noisy = flipped(labels, 5, 30, 1)
    assert (noisy != labels).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(flipped(labels, 5, 30, 1), noisy)
    assert not torch.equal(flipped(labels, 5, 30, 2), noisy)
    assert 0 <= int(noisy.min()) <= int(noisy.max()) <= 4


def test_arms_take_what_was_chosen() -> None:
    tuned = {"kd": "T=4", "band": "0.02-0.15, alpha 1"}
    assert ARMS["kd_tuned"].with_tuned(tuned).policy == TUNED_KD["T=4"].policy
    assert ARMS["kd_tuned"].with_tuned(tuned).squared
    chosen = ARMS["default"].with_tuned(tuned)
    assert (chosen.policy, chosen.alpha, chosen.rho) == (BANDS["0.02-0.15, alpha 1"].policy, 1.0, 0.5)
    assert ARMS["dtr"].with_tuned(tuned).rho == 0.0
    assert ARMS["paper"].with_tuned(tuned) == ARMS["paper"]


def toy(tmp_path: Path, count: int = 36) -> Path:
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "rel2id.json").write_text(json.dumps(RELATIONS))
    for seed, split in enumerate(("train", "dev", "test")):
        plain = write(tmp_path / "plain.jsonl", records(count, seed))
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    return folder


def test_the_last_layer_alone_is_the_whole_model(tmp_path: Path) -> None:
    encoder = models.write_checkpoint(models.tiny("bert"), tmp_path / "encoder")
    cell = Cell(toy(tmp_path, 12), 0, "bert", tmp_path / "work", str(encoder))
    model = cell.new_model(3)
    whole = EntityStartForRelationExtraction(model.config).eval()
    whole.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = whole(**collate_relations(cell.rows[0])).logits
        found = model(**cell.collate(cell.rows[0])).logits
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)  # the states are kept in float16
    assert not torch.equal(cell.new_model(4).classifier.weight, model.classifier.weight)
    found = cell.run(ARMS["kd"], 5, {})
    assert found["test"]["nll"] > 0
    assert (cell.work / "teacher-5.npy").exists()


def test_a_cell_from_data_to_tables(tmp_path: Path) -> None:
    folder = toy(tmp_path)
    assert len(read_instances(folder / "train.jsonl.gz")) == 36
    cell = Cell(folder, 15, "pcnn", tmp_path / "work")
    runs = {}
    for arm in ("teacher", "kd", "default"):
        for seed in (1, 2):
            runs[f"{arm}/{seed}"] = cell.run(ARMS[arm], seed, {"kd": "T=1"})
    assert (cell.work / "teacher-1.npy").exists()
    assert STUDENT > 100
    content = {"cells": {cell.name: {"runs": runs, "tuning": {"kd": "T=1"}}}}
    store(tmp_path / "out" / "midtd.json", content)
    again = load(tmp_path / "out" / "midtd.json")["cells"][cell.name]
    differences, text = paired(again, "default", "kd")
    expected = [runs[f"default/{seed}"]["test"]["auc"] - runs[f"kd/{seed}"]["test"]["auc"] for seed in (1, 2)]
    assert differences == pytest.approx(expected)
    assert f"{sum(expected) / 2:+.2f} [" in text
    written = table(cell.name, again)
    assert "MiDTD, default" in written
    assert "MiTF alone" not in written
    assert len(demands(again)) == 4
    assert [line.split(" | ")[0] for line in likelihoods(again)[2:]] == [
        "| teacher",
        "| plain KD, T = 1",
        "| MiDTD, default",
    ]
    (line,) = (line for line in softness(again) if "T = 1" in line)
    spread = {arm: [runs[f"{arm}/{seed}"]["target_entropy"]["spread"] for seed in (1, 2)] for arm in ("default", "kd")}
    narrower = sum(ours < theirs for ours, theirs in zip(spread["default"], spread["kd"], strict=True))
    assert line.endswith(f"narrower in {narrower} of 2")
    plot(cell.name, again, tmp_path / "plots")
    assert (tmp_path / "plots" / "midtd-toy-15-pcnn.svg").stat().st_size > 5000


def test_a_fixed_temperature_of_equal_median() -> None:
    targets = 6 * torch.randn(401, 5, generator=torch.Generator().manual_seed(0))
    policy = Band(0.3, 0.6)
    found = fixed_of_equal_median(policy, targets)
    assert found["p50"] == pytest.approx(float(entropy(targets, policy(targets, targets)[0]).median()), abs=1e-3)
    assert found["spread"] > entropies(policy, targets)["spread"]
    assert fixed_of_equal_median(Fixed(2.5), targets)["temperature"] == pytest.approx(2.5, abs=0.01)


def test_the_subset_of_dbpedia_keeps_bags_and_a_fifth_of_the_rest(tmp_path: Path) -> None:
    rows = [row | {"pair": f"pair{number // 2 if number < 40 else number}"} for number, row in enumerate(records(440))]
    kept = subset(read_instances(write(tmp_path / "rows.jsonl", rows)))
    pairs = [item.pair for item in kept]
    assert pairs[:40] == [f"pair{number // 2}" for number in range(40)]
    assert 0.1 < len(pairs[40:]) / 400 < 0.3
    assert all(int(hashlib.md5(f"s{pair}".encode()).hexdigest(), 16) % 100 < 20 for pair in pairs[40:])
    folder = toy(tmp_path).rename(tmp_path / "dbpedia_pt")
    (folder / "test.jsonl.gz").rename(folder / "test_ds.jsonl.gz")
    cell = Cell(folder, 0, "pcnn", tmp_path / "work")
    assert len(cell.test) == 36
    assert cell.options.epochs == 5
