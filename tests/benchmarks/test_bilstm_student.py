"""The benchmark of a BiLSTM student: which rows it trains on, and a run from data to figures."""

from __future__ import annotations

import gzip
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import bilstm_student
from benchmarks.bilstm_student import run, sentences
from tests import models


def test_from_sentences_to_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["cat", "dog", "book", "film", "mat", "park"]
    train = [
        f"{number % 2}\tthe {('bad', 'good')[number % 2]} {words[number % 6]} {words[number // 6]}"
        for number in range(36)
    ]
    (tmp_path / "train.tsv.gz").write_bytes(
        gzip.compress("\n".join(["label\tsentence", *train, "1\tA big DOG"]).encode())
    )
    (tmp_path / "dev.tsv").write_text("label\tsentence\n1\ta big dog\n0\tbad film\n1\tgood cat\n0\tnot bad\n")
    monkeypatch.setattr(bilstm_student, "HELD_OUT", 6)
    chosen, held_out = sentences(tmp_path, 100, 0)
    assert len(chosen) == 30
    assert len(held_out) == 6
    assert not {text for text, _ in chosen} & {text for text, _ in held_out}
    assert all("DOG" not in text for text, _ in chosen + held_out)
    encoder = models.write_checkpoint(models.tiny("bert"), tmp_path / "encoder")
    given = Namespace(data=tmp_path, work=tmp_path, rows=16, epochs=1, teacher_epochs=1, encoder=str(encoder))
    given.hidden, given.pooling = 8, "max"
    found = run(given, 1)
    assert found["size"] == {"layers": 1, "hidden": 8, "pooling": "max"}
    assert 0 <= found["student"] <= 100
    assert set(found["time"]) == {"1x16", "1x128", "8x64"}
