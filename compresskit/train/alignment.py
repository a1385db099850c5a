"""Which tokens of two tokenizations of a text end at the same character, so that two models can be compared there.

What both models say next, behind such tokens, is said after the same text. White space doesn't count: tokenizers differ
in whether it belongs to the word before, to the word behind, or to none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compresskit.errors import DataError

NOWHERE = -1


@dataclass(frozen=True)
class Read:
    """A tokenized text: token numbers, and how many of its visible characters each token and those before it cover.

    Special tokens behind the text end ``NOWHERE``.
    """

    ids: tuple[int, ...]
    ends: tuple[int, ...]


def read(texts: Sequence[str], tokenizer: Any, max_length: int) -> list[Read]:
    """``texts`` by ``tokenizer``, each cut to ``max_length`` tokens.

    Raises:
        DataError: CK-D075, a tokenizer that can't say which characters a token stands for.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            "CK-D075",
            "there is no tokenizer"
            if tokenizer is None
            else f"{type(tokenizer).__name__} doesn't say which characters a token stands for",
            fix="take a model with a fast tokenizer (tokenizer.json)",
        )
    found = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    columns = found["input_ids"], found["offset_mapping"], found["special_tokens_mask"]
    return [
        Read(tuple(ids), tuple(_ends(text, offsets, special)))
        for text, ids, offsets, special in zip(texts, *columns, strict=True)
    ]


def _ends(text: str, offsets: Sequence[tuple[int, int]], special: Sequence[int]) -> list[int]:
    visible = [0]
    for character in text:
        visible.append(visible[-1] + (not character.isspace()))
    ends, begun = [], False
    for (_, end), is_special in zip(offsets, special, strict=True):
        begun = begun or not is_special
        ends.append(NOWHERE if is_special and begun else visible[end])
    return ends


def aligned(ours: Sequence[int], theirs: Sequence[int]) -> list[int]:
    """For each of our tokens theirs that ends at the same character, or ``NOWHERE``.

    Of several tokens that end there (the bytes of one character) only the last one has read it whole.
    """
    last_of_theirs = {end: place for place, end in enumerate(theirs) if end != NOWHERE}
    last_of_ours = {end: place for place, end in enumerate(ours)}
    return [
        last_of_theirs.get(end, NOWHERE) if end != NOWHERE and last_of_ours[end] == place else NOWHERE
        for place, end in enumerate(ours)
    ]
