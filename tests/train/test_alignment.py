"""Where two tokenizations of a text meet, worked by hand, and that special tokens and white space don't count."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from compresskit.errors import DataError
from compresskit.train.alignment import NOWHERE, aligned, read
from tests import models


def byte_tokenizer(*, begin: bool = True) -> Any:
    """Bytes and a few merges, with ``<s>`` before each text if asked."""
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["the cat sat on the mat", "the dog"] * 4, trainer)
    if begin:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<s>", model_max_length=64)


def test_tokens_that_end_at_the_same_character() -> None:
    assert aligned([0, 3, 6, 9], [0, 2, 3, 9]) == [0, 2, NOWHERE, 3]
    assert aligned([0, 3, 3, 5], [3, 3, 3]) == [NOWHERE, NOWHERE, 2, NOWHERE]
    assert aligned([3, NOWHERE], [3, NOWHERE]) == [0, NOWHERE]


def test_what_each_token_covers() -> None:
    ours = read(["The cat, sat"], models.tokenizer(), 64)[0]
    # [CLS] the cat , s ##a ##t or so [SEP]: ends count visible characters, and the end token stands behind the text.
    assert ours.ends[:4] == (0, 3, 6, 7)
    assert ours.ends[-2:] == (10, NOWHERE)
    theirs = read(["The cat, sat"], byte_tokenizer(), 64)[0]
    assert theirs.ends[0] == 0
    assert theirs.ends[-1] == 10
    places = aligned(ours.ends, theirs.ends)
    assert places[0] == 0
    assert [theirs.ends[place] for place in places[:4]] == [0, 3, 6, 7]


def test_white_space_belongs_to_neither_side() -> None:
    texts = ["the  cat\n sat "]
    ours, theirs = read(texts, models.tokenizer(), 64)[0], read(texts, byte_tokenizer(begin=False), 64)[0]
    met = {ours.ends[n] for n, place in enumerate(aligned(ours.ends, theirs.ends)) if place != NOWHERE}
    assert {3, 6, 9} <= met
    assert 0 not in met, "without a beginning token nothing is said before the text"


def test_bytes_of_one_character_count_once_they_are_whole() -> None:
    # A character that is no merge: three bytes end at the same place, and the last one has read it whole.
    found = read(["€"], byte_tokenizer(begin=False), 64)[0]
    assert len(found.ids) == 3
    assert aligned([1], found.ends) == [2]
    assert aligned(found.ends, [1]) == [NOWHERE, NOWHERE, 0]


def test_texts_are_cut() -> None:
    assert len(read(["the cat sat on the mat"], models.tokenizer(), 4)[0].ids) == 4


@pytest.mark.parametrize("tokenizer", [None, object()])
def test_a_tokenizer_that_knows_no_characters_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError) as caught:
        read(["the"], tokenizer, 8)
    assert caught.value.code == "CK-D075"
