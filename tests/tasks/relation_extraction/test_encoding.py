"""Words and markers: numbers, cuts around the entities, batches, word vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compresskit.errors import DataError
from compresskit.tasks.relation_extraction import (
    Instance,
    Vocabulary,
    add_markers,
    collate_relations,
    mark,
    read_instances,
    relation_numbers,
    word_vectors,
)
from compresskit.tasks.relation_extraction.encoding import MARKERS, window
from tests import models
from tests.tasks.relation_extraction.examples import RELATIONS, records, write


def sentence(length: int = 9, head: tuple[int, int] = (1, 2), tail: tuple[int, int] = (5, 7)) -> Instance:
    return Instance(tuple(f"w{number}" for number in range(length)), head, tail, "NA", "p")


def test_words_and_case_and_digits() -> None:
    items = [Instance(("The", "the", "1984", "2024", "once"), (0, 1), (2, 3), "NA", "p")]
    vocabulary = Vocabulary.of(items)
    assert set(vocabulary.words[2:]) == {"the", "0000"}
    (row,) = vocabulary.encode(items)
    assert row.ids[0] == row.ids[1]
    assert row.ids[2] == row.ids[3]
    assert row.ids[4] == 1


def test_the_tokenizer_gives_the_same_numbers(tmp_path: Path) -> None:
    items = read_instances(write(tmp_path / "a.jsonl", records()))
    vocabulary = Vocabulary.of(items)
    tokenizer = vocabulary.tokenizer()
    for item, row in zip(items, vocabulary.encode(items), strict=True):
        assert tokenizer(" ".join(item.tokens))["input_ids"] == list(row.ids)
    assert tokenizer("The 19 Foo")["input_ids"] == [vocabulary.numbers()["the"], 1, 1]
    assert Vocabulary.of_tokenizer(tokenizer) == vocabulary
    vocabulary.save(tmp_path)
    assert Vocabulary.load(tmp_path) == vocabulary


@pytest.mark.parametrize(("head", "tail"), [((1, 2), (5, 7)), ((80, 81), (40, 41)), ((0, 1), (98, 100))])
def test_a_cut_keeps_what_it_can(head: tuple[int, int], tail: tuple[int, int]) -> None:
    item = sentence(100, head, tail)
    start, end = window(head, tail, 100, 60)
    assert end - start == 60
    assert 0 <= start <= end <= 100
    (row,) = Vocabulary.of([item], least=1).encode([item], 60)
    words = Vocabulary.of([item], least=1).words
    assert len(row.ids) == 60
    if max(head[1], tail[1]) - min(head[0], tail[0]) <= 60:
        assert words[row.ids[row.head[0]]] == Vocabulary.of([item], least=1).words[row.ids[head[0] - start]]
        assert (row.head[0] + start, row.tail[0] + start) == (head[0], tail[0])
    assert 0 <= row.head[0] < row.head[1] <= 60
    assert 0 <= row.tail[0] < row.tail[1] <= 60


def test_markers_of_a_tokenizer() -> None:
    tokenizer, encoder = models.tokenizer(), models.tiny("bert")
    before = encoder.get_input_embeddings().num_embeddings
    add_markers(tokenizer, encoder)
    add_markers(tokenizer, encoder)
    assert encoder.get_input_embeddings().num_embeddings == max(before, len(tokenizer))
    starts = tokenizer.convert_tokens_to_ids([MARKERS[0], MARKERS[2]])
    item = Instance(("the", "small", "cat", "sat", "on", "the", "mat"), (5, 7), (1, 3), "NA", "p")
    (row,) = mark([item], tokenizer)
    assert [row.ids[row.head[0]], row.ids[row.tail[0]]] == starts
    assert row.head[0] > row.tail[0]
    long = Instance(("the",) * 200 + item.tokens + ("mat",) * 200, (205, 207), (201, 203), "NA", "p")
    (cut,) = mark([long], tokenizer, 32)
    assert len(cut.ids) <= 32
    assert [cut.ids[cut.head[0]], cut.ids[cut.tail[0]]] == starts


def test_batches_are_padded_on_the_right() -> None:
    items = [sentence(9), sentence(7)]
    rows = Vocabulary.of(items, least=1).encode(items)
    batch = collate_relations(rows)
    assert batch["input_ids"].shape == (2, 9)
    assert batch["attention_mask"].sum(1).tolist() == [9, 7]
    assert torch.equal(batch["head"], torch.tensor([[1, 2], [1, 2]]))


def test_an_unknown_relation(tmp_path: Path) -> None:
    items = read_instances(write(tmp_path / "a.jsonl", records(6)))
    assert relation_numbers(items, RELATIONS).tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(DataError) as caught:
        relation_numbers(items, {"NA": 0, "born": 1})
    assert caught.value.code == "CK-D051"


def test_word_vectors_from_text_and_npz(tmp_path: Path) -> None:
    vocabulary = Vocabulary(("", "<unknown>", "ann", "born"))
    (tmp_path / "v.txt").write_text("3 2\nann 1 2\nother 5 6\nborn 3 4\n", encoding="utf-8")
    np.savez(tmp_path / "v.npz", words=np.array(["born", "ann"]), vectors=np.array([[3, 4], [1, 2]], dtype=np.float32))
    for name in ("v.txt", "v.npz"):
        found = word_vectors(tmp_path / name, vocabulary)
        assert {number: vector.tolist() for number, vector in found.items()} == {2: [1, 2], 3: [3, 4]}
    (tmp_path / "bad.txt").write_text("ann 1 2\nborn 3 4 5\n")
    (tmp_path / "none.txt").write_text("other 1 2\n")
    (tmp_path / "word.txt").write_text("ann 1 x\n")
    for name in ("bad.txt", "none.txt", "word.txt"):
        with pytest.raises(DataError) as caught:
            word_vectors(tmp_path / name, vocabulary)
        assert caught.value.code == "CK-D064"
