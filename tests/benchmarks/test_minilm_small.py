"""The benchmark of the small MiniLM: which texts it trains on, and that a student's time is a share of the whole's."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from benchmarks import minilm_small
from benchmarks.minilm_small import FIRST, NEAR, SOURCES, pool, sentences, time_ratios
from compresskit.recipe import Recipe
from tests import models


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for source, (columns, _) in SOURCES.items():
        name = source.partition("/")[0]
        own = [f"A sentence of {name} here", "The dog isn't there", "So is this test sentence"]
        lines = ["\t".join(columns)] if columns else []
        lines += ["\t".join([text] * max(1, len(columns))) for text in own]
        content = "".join(f"{line}\n" for line in lines).encode()
        path = tmp_path / source
        path.parent.mkdir()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    header = "score\tsentence1\tsentence2\n"
    (tmp_path / "stsb" / "dev.tsv").write_text(f"{header}1.0\tthe DOG isn't there!\tanother of dev\n")
    (tmp_path / "stsb" / "test.tsv").write_text(f"{header}1.0\tso is this, test sentence.\tanother of test\n")
    return tmp_path


def test_no_sentence_of_development_or_test_data_is_trained_on_and_none_twice(data: Path) -> None:
    found = pool(data, "all")
    assert found == [f"A sentence of {source.partition('/')[0]} here" for source in SOURCES]


def test_the_general_pool_has_nothing_of_the_same_origin(data: Path) -> None:
    near = {source.partition("/")[0] for source in NEAR}
    assert near == {"stsb", "multi30k"}
    found = pool(data, "general")
    assert len(found) == len(SOURCES) - 2
    assert not any(word in text for text in found for word in near)


def test_as_many_sentences_of_a_source_as_it_may_give(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "banking77" / "train.tsv").write_text("text\n" + "".join(f"This is text {n}\n" for n in range(9)))
    monkeypatch.setitem(SOURCES, "banking77/train.tsv", (("text",), 4))
    assert [text for text in pool(data, "all") if "text" in text] == [f"This is text {n}" for n in range(4)]


def test_texts_are_split_at_the_ends_of_sentences() -> None:
    assert sentences("One two three. Four five! Six seven eight? nine ten eleven") == [
        "One two three.",
        "Six seven eight?",
        "nine ten eleven",
    ]


def test_the_first_steps_of_the_recipe_make_the_student() -> None:
    names = [step.method.full_name() for step in Recipe.load("minilm-small").steps]
    assert names[:FIRST] == ["pruning.layers", "distillation.embeddings"]
    assert names.count("distillation.embeddings") == 2


def test_a_deeper_model_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm_small, "SHAPES", ((2, 8),))
    small, large = models.tiny("bert"), models.tiny("bert", num_hidden_layers=12)
    assert time_ratios(small, large, rounds=3)["2x8"] < 0.8
