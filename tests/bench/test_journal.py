"""The journal: what a kill cut off is dropped, another run is not resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from compresskit.bench.journal import Journal
from compresskit.errors import UsageError
from tests.bench.fake import blocks

HEADER = {"environment": "e", "models": {"a": "torch x"}, "seed": 0}


def filled(path: Path) -> Journal:
    journal = Journal(path, HEADER, resume=False)
    for block in blocks({"a": 1.0}, processes=1, count=3):
        journal.add("block", block=block.model_dump(mode="json"))
    journal.close()
    return journal


def test_blocks_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.jsonl"
    written = filled(path).blocks()
    journal = Journal(path, HEADER, resume=True)
    assert journal.blocks() == written
    assert journal.session == 1
    journal.add("slices", cell="c", blocks=3)
    journal.add("slices", cell="c", blocks=4)
    assert journal.find("slices", cell="c")["blocks"] == 4  # type: ignore[index]
    assert journal.find("slices", cell="d") is None
    journal.close()


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_line_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "out.jsonl"
    filled(path)
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(path, HEADER, resume=True)
    assert len(journal.blocks()) == 2
    journal.add("block", block=blocks({"a": 1.0}, processes=1, count=1)[0].model_dump(mode="json"))
    journal.close()
    again = Journal(path, HEADER, resume=True)
    assert len(again.blocks()) == 3
    again.close()


@pytest.mark.parametrize("key", ["environment", "models", "seed"])
def test_another_run_is_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "out.jsonl"
    filled(path)
    with pytest.raises(UsageError) as caught:
        Journal(path, {**HEADER, key: "other"}, resume=True)
    assert caught.value.code == "CK-B016"
    assert key in caught.value.why


def test_nothing_to_resume_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    for content in (None, "{\n"):
        if content is not None:
            path.write_text(content)
        with pytest.raises(UsageError) as caught:
            Journal(path, HEADER, resume=True)
        assert caught.value.code == "CK-B016"


def test_without_resume_it_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    filled(path)
    journal = Journal(path, HEADER, resume=False)
    assert journal.blocks() == []
    journal.close()
