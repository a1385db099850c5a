from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from compresskit.calibrate.sources import load_texts
from compresskit.calibrate.text import builtin_texts
from compresskit.errors import DataError


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", 'one fish\n\ntwo "fish"\n'),
        ("a.tsv", 'score\tsentence\n1\tone fish\n2\ttwo "fish"\n'),
        ("a.csv", 'score,text\n1,one fish\n2,"two ""fish"""\n'),
        ("a.jsonl", '{"text": "one fish"}\n\n{"text": "two \\"fish\\""}\n'),
        ("b.jsonl", '"one fish"\n"two \\"fish\\""\n'),
        ("a.txt.gz", 'one fish\r\ntwo "fish"\r\n'),
        ("a.tsv.gz", 'text\none fish\ntwo "fish"\n'),
    ],
)
def test_each_format_is_read(tmp_path: Path, name: str, content: str) -> None:
    assert load_texts(written(tmp_path, name, content)) == ["one fish", 'two "fish"']


def test_a_column_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", "sentence1\tsentence2\na\tb\n")
    assert load_texts(path) == ["a"]
    assert load_texts(path, column="sentence2") == ["b"]


def test_a_sample_is_even_repeats_and_keeps_the_order(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "\n".join(f"{number:04d}" for number in range(2000)))
    first = load_texts(path, 100, seed=1)
    assert first == load_texts(path, 100, seed=1) == sorted(first)
    assert first != load_texts(path, 100, seed=2)
    assert len(set(first)) == 100
    halves = sum(int(text) < 1000 for text in first)
    assert 30 < halves < 70


def test_builtin_texts_are_a_source(tmp_path: Path) -> None:
    assert load_texts("builtin", 12, seed=4) == builtin_texts(12, 4)
    assert load_texts("builtin", 12, split="heldout") == builtin_texts(12, 0, split="heldout")


@pytest.mark.parametrize(("content", "effect"), [("alone\n", "single text"), ("one\ntwo\n", "noisier")])
def test_fewer_texts_than_asked_for_are_told(tmp_path: Path, content: str, effect: str) -> None:
    notes: list[str] = []
    load_texts(written(tmp_path, "a.txt", content), 9, warn=notes.append)
    assert len(notes) == 1
    assert effect in notes[0]


@pytest.mark.parametrize(
    ("name", "content", "column", "code", "words"),
    [
        ("a.txt", "\n \n", None, "CK-D003", "no text"),
        ("a.tsv", "", None, "CK-D003", "no text"),
        ("a.tsv", "text\n", None, "CK-D003", "no text"),
        ("a.parquet", "x", None, "CK-D002", ".parquet"),
        ("noend", "x", None, "CK-D002", "no suffix"),
        ("a.tsv", "text\tlabel\na\t1\n", "txet", "CK-D004", "txet"),
        ("a.tsv", "left\tright\na\tb\n", None, "CK-D004", "isn't plain"),
        ("a.txt", "a\n", "text", "CK-D004", "no column"),
        ("a.tsv", "label\ttext\n1\ta\n2\n", None, "CK-D005", "null"),
        ("a.jsonl", '{"text": "a"}\n{"text": NaN}\n', None, "CK-D005", "NaN"),
        ("a.jsonl", '{"text": 3}\n', None, "CK-D005", "3"),
        ("a.jsonl", '{"text": \n', None, "CK-D005", "isn't JSON"),
        ("a.jsonl", "[1]\n", None, "CK-D005", "no JSON object"),
    ],
)
def test_bad_files_are_refused(
    tmp_path: Path, name: str, content: str, column: str | None, code: str, words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        load_texts(written(tmp_path, name, content), column=column)
    assert caught.value.code == code
    assert name in caught.value.where


def test_the_row_at_fault_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_texts(written(tmp_path, "a.jsonl", '{"text": "a"}\n{"text": null}\n'))
    assert caught.value.where.endswith("line 2")


def test_the_closest_column_is_offered(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_texts(written(tmp_path, "a.tsv", "sentence\tlabel\na\t1\n"), column="sentense")
    assert "did you mean 'sentence'" in caught.value.fix
    assert "label" in caught.value.fix


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_texts(tmp_path / "absent.txt")
    assert caught.value.code == "CK-D001"


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", b"\xff\xfe\x00bad"), ("a.txt.gz", b"no gzip"), ("b.txt.gz", None)]
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    path.write_bytes(content if content is not None else gzip.compress(b"whole\n" * 1000)[:-12])
    with pytest.raises(DataError) as caught:
        load_texts(path)
    assert caught.value.code == "CK-D002"


def test_asking_for_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_texts("builtin", 0)
    assert caught.value.code == "CK-D003"
