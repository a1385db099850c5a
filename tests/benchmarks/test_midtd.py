"""The benchmark of MiDTD: flips, tuned arms, paired tables, and a cell from data to rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from benchmarks.midtd import STUDENT, Cell, flipped, load, store
from benchmarks.midtd_arms import ARMS, BANDS, TUNED_KD
from benchmarks.midtd_report import demands, paired, plot, table
from compresskit.models.relation import EntityStartForRelationExtraction
from compresskit.tasks.relation_extraction import collate_relations, read_instances
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
    plot(cell.name, again, tmp_path / "plots")
    assert (tmp_path / "plots" / "midtd-toy-15-pcnn.svg").stat().st_size > 5000
