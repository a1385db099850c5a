from __future__ import annotations

import random
import re
from types import SimpleNamespace

import pytest

from compresskit.calibrate import everyday
from compresskit.calibrate.lexicon import PATTERNS, WORDS
from compresskit.calibrate.text import DOMAINS, SHARES, builtin_texts, vocabulary_words
from compresskit.errors import DataError
from tests import models


def test_equal_seeds_give_equal_texts_and_other_seeds_others() -> None:
    first, again, other = builtin_texts(64, 1), builtin_texts(64, 1), builtin_texts(64, 2)
    assert first == again
    assert len(set(first)) == 64
    assert len(set(first) & set(other)) < 8


def test_a_longer_sample_begins_with_the_shorter_one() -> None:
    assert builtin_texts(80, 0)[:20] == builtin_texts(20, 0)


@pytest.mark.parametrize("kind", [kind for kind in SHARES if kind != "vocabulary"])
def test_each_kind_has_both_splits_and_they_are_disjoint(kind: str) -> None:
    calibration = builtin_texts(120, 0, kinds=[kind])
    heldout = builtin_texts(60, 0, split="heldout", kinds=[kind])
    assert not set(calibration) & set(heldout)


def test_lengths_are_mixed() -> None:
    words = [len(text.split()) for text in builtin_texts(256, 0)]
    assert min(words) <= 8
    assert sum(count > 150 for count in words) >= 8
    assert max(len(text) for text in builtin_texts(256, 0)) <= 4000


def test_both_domains_have_equal_parts_of_the_mixture() -> None:
    for kinds in DOMAINS.values():
        assert sum(SHARES[kind] for kind in kinds) == 8
    mixture = set(builtin_texts(72, 0))
    everyday_texts = set(builtin_texts(32, 0, kinds=["everyday"]))
    assert len(mixture & everyday_texts) == 32


def test_held_out_sentences_use_other_patterns_and_other_words() -> None:
    for topic in PATTERNS:
        assert not set(everyday._patterns(topic, "calibration")) & set(everyday._patterns(topic, "heldout"))
    for slot in set(WORDS) - everyday._NUMERALS:
        seen, kept = set(everyday._choices(slot, "calibration")), set(everyday._choices(slot, "heldout"))
        assert seen
        assert kept
        assert not seen & kept, slot


def test_every_pattern_can_be_filled() -> None:
    choice = random.Random(0)
    for topic, patterns in PATTERNS.items():
        for pattern in patterns:
            for split in ("calibration", "heldout"):
                text = everyday._fill(pattern, choice, split)
                assert not re.search(r"[{}]|  ", text), (topic, pattern, text)


@pytest.mark.parametrize(
    ("phrase", "form", "expected"),
    [
        ("slice an onion", "ing", "slicing an onion"),
        ("cut it", "ing", "cutting it"),
        ("lie down", "ing", "lying down"),
        ("wait here", "past", "waited here"),
        ("chop it", "past", "chopped it"),
        ("carry it", "past", "carried it"),
        ("go home", "done", "gone home"),
        ("go home", "third", "goes home"),
        ("reject it", "third", "rejects it"),
        ("watch it", "third", "watches it"),
        ("baby", "many", "babies"),
        ("woman", "many", "women"),
        ("tomato", "many", "tomatoes"),
        ("toy", "many", "toys"),
    ],
)
def test_words_are_inflected_as_in_english(phrase: str, form: str, expected: str) -> None:
    assert everyday._inflect(phrase, form) == expected


def test_articles_follow_the_next_sound() -> None:
    assert everyday._finish("A apple and a orange.", question=False) == "An apple and an orange."


def test_questions_end_in_a_question_mark() -> None:
    assert all(text.endswith("?") for text in builtin_texts(40, 0, kinds=["questions"]))


def test_an_unknown_kind_is_refused_with_those_that_exist() -> None:
    with pytest.raises(DataError, match="there is no kind") as caught:
        builtin_texts(4, kinds=["poems"])
    assert caught.value.code == "CK-D010"
    assert "everyday" in caught.value.fix


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(DataError, match="were asked for") as caught:
        builtin_texts(10**5, kinds=["messages"])
    assert caught.value.code == "CK-D010"


def test_words_of_the_model_become_a_third_of_the_texts() -> None:
    words = vocabulary_words(models.tokenizer())
    assert {"the", "film"} <= set(words)
    assert list(words) == sorted(words)
    plain, mixed = builtin_texts(52, 0), builtin_texts(52, 0, vocabulary=words)
    made = [text for text in mixed if set(text.split()) <= set(words)]
    assert len(made) == 16
    assert len(set(plain) & set(mixed)) == 36
    heldout = {
        word
        for text in builtin_texts(40, 0, split="heldout", kinds=["vocabulary"], vocabulary=words)
        for word in text.split()
    }
    assert not heldout & {word for text in made for word in text.split()}


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["[CLS]", "cat", "##cat", "dog", "no", "x1y"], ("cat", "dog")),
        (["Ġcat", "cat", "Ġdog", "ĠÃ©tÃ©", "!", "Ġno"], ("cat", "dog")),
        (["▁cat", "s", "▁été", "▁12", "</s>"], ("cat", "été")),
    ],
)
def test_words_are_found_in_each_form_of_vocabulary(tokens: list[str], words: tuple[str, ...]) -> None:
    tokenizer = SimpleNamespace(get_vocab=lambda: {token: index for index, token in enumerate(tokens)})
    assert vocabulary_words(tokenizer) == words


def test_without_a_vocabulary_its_kind_is_refused() -> None:
    assert vocabulary_words(None) == ()
    with pytest.raises(DataError):
        builtin_texts(4, kinds=["vocabulary"])
