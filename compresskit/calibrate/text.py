"""The built-in texts: a mixture of kinds of text that need no download.

A refit by least squares fits the domain that it saw: calibrated on documentation alone, a pruned encoder kept .983
cosine there and .787 on everyday sentences. So calibration mixes kinds and lengths, and fidelity is reported on two
domains. Remarks of a few plain words drive activations furthest: without them, fixed ranges cut such texts off. Strings
of words from the model's own vocabulary reach directions that no made-up sentence does. Text of the user's own domain
is better than any of this.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from compresskit.calibrate import everyday, harvest
from compresskit.calibrate.everyday import Split
from compresskit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["documentation", "docstrings", "messages", "sentences", "questions", "passages", "remarks", "vocabulary"]

DOMAINS: dict[str, tuple[Kind, ...]] = {
    "documentation": ("documentation", "docstrings", "messages"),
    "everyday": ("sentences", "questions", "passages"),
}
"""The two domains that fidelity is reported on, each a set of kinds."""

SHARES: dict[Kind, int] = {
    "documentation": 4,
    "docstrings": 3,
    "messages": 1,
    "sentences": 6,
    "questions": 1,
    "passages": 1,
    "remarks": 2,
    "vocabulary": 8,
}
"""Of twenty-six texts, how many are of which kind; of eighteen, where no vocabulary is given."""

_POOLS: dict[str, Callable[[Split], Sequence[str]]] = {
    "documentation": harvest.documentation,
    "docstrings": harvest.docstrings,
    "messages": harvest.messages,
}
_GRAMMAR: dict[str, Callable[[random.Random, Split], str]] = {
    "sentences": everyday.sentence,
    "questions": everyday.question,
    "passages": everyday.passage,
    "remarks": everyday.remark,
}


def builtin_texts(
    samples: int,
    seed: int = 0,
    *,
    split: Split = "calibration",
    kinds: Sequence[str] | None = None,
    vocabulary: Sequence[str] = (),
) -> list[str]:
    """``samples`` different texts, the same for the same arguments and Python version, kinds well mixed.

    Args:
        split: ``heldout`` texts come from other modules, other sentence patterns and other words than ``calibration``
            texts, and none of them is among those.
        kinds: kinds (see ``SHARES``) or domains (see ``DOMAINS``); all by default.
        vocabulary: words that strings of random words are made of, as ``vocabulary_words`` gives them; none are made
            without.

    Raises:
        DataError: CK-D010, where the kinds don't hold that many texts, or Python's sources are absent.
    """
    words = tuple(word for word in vocabulary if everyday.held_out(word) == (split == "heldout"))
    chosen = _kinds(kinds if kinds is not None else [*DOMAINS, "remarks", *(["vocabulary"] if words else [])])
    streams = {kind: _stream(kind, seed, split, words) for kind in chosen}
    turns = [kind for turn in range(max(SHARES[kind] for kind in chosen)) for kind in chosen if SHARES[kind] > turn]
    texts: dict[str, None] = {}
    while streams and len(texts) < samples:
        for kind in turns:
            text = next(streams[kind], None) if kind in streams else None
            if text is None:
                streams.pop(kind, None)
                continue
            texts.setdefault(text)
            if len(texts) == samples:
                break
    if len(texts) < samples:
        raise DataError(
            "CK-D010",
            f"the built-in {', '.join(chosen)} hold {len(texts)} texts, {samples} were asked for",
            fix="ask for fewer, or give a file of your own",
        )
    return list(texts)


def vocabulary_words(tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
    """Whole words of at least three letters that are one token each, in alphabetical order."""
    if tokenizer is None:
        return ()
    tokens = tokenizer.get_vocab()
    # Tokens that begin a word: marked in byte-level and sentence-piece vocabularies, unmarked in WordPiece.
    marks = tuple(mark for mark in ("Ġ", "▁") if sum(token.startswith(mark) for token in tokens) > len(tokens) // 20)
    words = {
        token[1:] if marks else token
        for token in tokens
        if token.startswith(marks) or (not marks and not token.startswith("##"))
    }
    # Bytes of other scripts look like letters in a byte-level vocabulary.
    return tuple(
        sorted(word for word in words if len(word) > 2 and word.isalpha() and (word.isascii() or "Ġ" not in marks))
    )


def _kinds(names: Sequence[str]) -> list[Kind]:
    kinds: list[Kind] = []
    for name in names:
        if name not in DOMAINS and name not in get_args(Kind):
            raise DataError(
                "CK-D010",
                f"there is no kind of built-in text {name!r}",
                fix=f"kinds: {', '.join(get_args(Kind))}; domains: {', '.join(DOMAINS)}",
            )
        kinds.extend(DOMAINS.get(name, [name]))  # type: ignore[list-item]
    return list(dict.fromkeys(kinds))


def _stream(kind: Kind, seed: int, split: Split, words: Sequence[str]) -> Iterator[str]:
    """Different texts of one kind: all of a shuffled pool, or of a grammar until it repeats itself."""
    choice = random.Random(f"{seed} {kind} {split}")
    if kind in _POOLS:
        pool = list(_POOLS[kind](split))
        if split == "heldout":
            seen = set(_POOLS[kind]("calibration"))
            pool = [text for text in pool if text not in seen]
        choice.shuffle(pool)
        yield from pool
        return
    if kind == "vocabulary":
        while words:
            yield " ".join(choice.choice(words) for _ in range(choice.randint(5, 20)))
        return
    written: set[str] = set()
    repeats = 0
    while repeats < 100:
        text = _GRAMMAR[kind](choice, split)
        if text in written:
            repeats += 1
            continue
        repeats = 0
        written.add(text)
        yield text
