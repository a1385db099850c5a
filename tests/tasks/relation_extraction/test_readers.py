"""Readers: four formats give the same sentences, and damage is named with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from compresskit.errors import DataError
from compresskit.tasks.relation_extraction import read_instances, read_relations
from tests.tasks.relation_extraction.examples import records, write


def test_json_lines(tmp_path: Path) -> None:
    rows = records(4)
    found = read_instances(write(tmp_path / "a.jsonl", rows))
    assert [item.relation for item in found] == ["NA", "born", "died", "NA"]
    assert found[1].tokens[found[1].head[0]] == "ann"
    assert found[1].tokens[slice(*found[1].tail)] == ("new", "york")
    assert found[0].pair == "ann0###york"
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert read_instances(packed) == found
    assert read_instances(packed, limit=2) == found[:2]


def test_nyt10_text(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text(
        "m.1\tm.2\tann_lee\tnew_york\t/people/person/place_of_birth\tann_lee was born in new york . ###END###\n",
        encoding="utf-8",
    )
    (item,) = read_instances(path)
    assert (item.head, item.tail) == ((0, 1), (4, 6))
    assert item.pair == "m.1###m.2"
    assert item.relation == "/people/person/place_of_birth"
    assert item.tokens[-1] == "."


def test_nyt10_json_in_both_shapes(tmp_path: Path) -> None:
    old = {
        "sentence": "ann was born in new_york .",
        "head": {"word": "ann", "id": "m.1"},
        "tail": {"word": "new_york", "id": "m.2"},
        "relation": "born",
    }
    new = {
        "text": "ann was born in new_york .",
        "h": {"name": "ann", "id": "m.1", "pos": [0, 3]},
        "t": {"name": "new_york", "id": "m.2", "pos": [16, 24]},
        "relation": "born",
    }
    (tmp_path / "old.json").write_text(json.dumps([old]), encoding="utf-8")
    (tmp_path / "new.json").write_text(json.dumps(new) + "\n", encoding="utf-8")
    first, second = read_instances(tmp_path / "old.json"), read_instances(tmp_path / "new.json")
    assert first == second
    assert (first[0].head, first[0].tail, first[0].pair) == ((0, 1), (4, 5), "m.1###m.2")


def test_semeval(tmp_path: Path) -> None:
    path = tmp_path / "TRAIN_FILE.TXT"
    path.write_text(
        '1\t"The <e1>burst</e1> has been caused by <e2>water hammer</e2> pressure."\n'
        "Cause-Effect(e2,e1)\nComment:\n\n"
        '2\t"A <e2>cup</e2> of <e1>tea</e1>."\nOther\nComment: none\n\n',
        encoding="utf-8",
    )
    first, second = read_instances(path)
    assert first.tokens[slice(*first.head)] == ("burst",)
    assert first.tokens[slice(*first.tail)] == ("water", "hammer")
    assert first.relation == "Cause-Effect(e2,e1)"
    assert second.tokens[second.head[0]] == "tea"
    assert second.tokens == ("A", "cup", "of", "tea", ".")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"pair": " "}, "CK-D061"),
        ({"h": {"name": "ann", "tok": [3, 3]}}, "CK-D060"),
        ({"h": {"name": "ann", "tok": [0, 99]}}, "CK-D060"),
        ({"h": "ann"}, "CK-D062"),
        ({"relation": None, "tokens": None}, "CK-D062"),
    ],
)
def test_damage_is_named(change: dict[str, object], code: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*records(2), {**records(1)[0], **change}])
    with pytest.raises(DataError) as caught:
        read_instances(path, "jsonl")
    assert caught.value.code == code
    assert "line 3" in caught.value.where


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data file"):
        read_instances(tmp_path / "nothing.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no sentence"):
        read_instances(tmp_path / "empty.jsonl", "jsonl")
    with pytest.raises(DataError, match="no format"):
        read_instances(write(tmp_path / "a.jsonl", records(1)), "xml")


def test_relations(tmp_path: Path) -> None:
    path = tmp_path / "rel2id.json"
    path.write_text('{"NA": 0, "born": 1}')
    assert read_relations(path) == {"NA": 0, "born": 1}
    path.write_text('{"NA": 0, "born": 2}')
    with pytest.raises(DataError) as caught:
        read_relations(path)
    assert caught.value.code == "CK-D062"
