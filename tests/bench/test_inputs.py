"""Inputs: real text of the asked length, the same for all arms, its lengths recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compresskit.bench import inputs
from compresskit.bench.subjects import find
from compresskit.bench.worker import read_batches, write_batches
from compresskit.errors import UsageError


def work(folder: Path, scenario: str = "encode", **changes: int) -> inputs.Work:
    subjects = find([str(folder)], None)
    settings = {"batch": 2, "length": 24, "threads": 1, "new_tokens": 4, "seed": 0, **changes}
    return inputs.make_work(subjects[0], inputs.load_tokenizer(subjects), scenario, **settings)  # type: ignore[arg-type]


def test_rows_are_full_of_different_text(bert: Path) -> None:
    found = work(bert)
    assert len(found.batches) == inputs.DIFFERENT_INPUTS == found.cell.inputs
    rows = {row.tobytes() for batch in found.batches for row in batch["input_ids"]}
    assert len(rows) == 2 * inputs.DIFFERENT_INPUTS
    for batch in found.batches:
        assert batch["input_ids"].shape == (2, 24)
        assert batch["input_ids"].dtype == np.int64
        assert batch["attention_mask"].all()
    assert found.cell.lengths == [24] * 16
    assert found.tokens == [48] * 8
    assert "random" not in found.cell.text


def test_the_same_arguments_give_the_same_bytes(bert: Path, tmp_path: Path) -> None:
    first, second = work(bert), work(bert)
    assert first.cell.input_hash == second.cell.input_hash
    assert work(bert, seed=1).cell.input_hash != first.cell.input_hash
    write_batches(tmp_path / "x.npz", first.batches)
    assert inputs.hash_of(read_batches(tmp_path / "x.npz")) == first.cell.input_hash
    more = inputs.with_threads(first, 2)
    assert more.cell.id.endswith("th2")
    assert more.cell.input_hash == first.cell.input_hash


def test_offline_texts_keep_their_lengths(bert: Path) -> None:
    found = work(bert, "offline", batch=4, length=64)
    lengths = np.array(found.cell.lengths)
    assert len(set(lengths.tolist())) > 5
    assert sum(found.tokens) == lengths.sum()
    padded = sum(batch["input_ids"].size for batch in found.batches)
    assert padded > lengths.sum()


def test_without_a_tokenizer_ids_are_random_and_it_is_said(bert: Path) -> None:
    subject = find([str(bert)], None)[0]
    found = inputs.make_work(subject, None, "encode", batch=1, length=8, threads=1, new_tokens=0, seed=0)
    assert found.cell.text.startswith("random")
    assert all(batch["input_ids"].max() < 512 for batch in found.batches)


def test_too_long_is_refused(bert: Path, gpt2: Path) -> None:
    with pytest.raises(UsageError) as caught:
        work(bert, length=131)
    assert caught.value.code == "CK-B014"
    with pytest.raises(UsageError):
        work(gpt2, "decode", length=126, new_tokens=4)
    subject = find([str(gpt2)], None)[0]
    assert inputs.default_length(subject, 128, 32) == 128 - 2 - 32
