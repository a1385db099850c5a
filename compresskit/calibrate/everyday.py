"""Made-up plain sentences: scenes, errands, news, weather, opinions, questions, and passages of them.

Words and patterns of ``lexicon`` are divided by hash between calibration and held-out text: a held-out sentence
follows a pattern that no calibration sentence follows, with content words that none of them has.
"""

from __future__ import annotations

import hashlib
import random
import re
from functools import lru_cache
from typing import Literal

from compresskit.calibrate.inflection import FORMS, MANY
from compresskit.calibrate.lexicon import PATTERNS, WORDS
from compresskit.calibrate.remarks import (
    ASKING,
    DEEDS,
    JUDGING,
    KINDS,
    POINTING,
    QUALITIES,
    SPEAKERS,
    TAILS,
    THINGS,
)

Split = Literal["calibration", "heldout"]

HELD_OUT_SHARE = 5
"""One word, pattern or module in so many is held out."""

_SLOT = re.compile(r"\{(\w+)(?::(\w+))?\}")
_NUMERALS = {"amount", "figure", "sum", "count", "often", "soon", "then", "how", "color"}
"""Small closed lists that both splits share: they carry little of a sentence's content."""


def held_out(key: str) -> bool:
    """Whether ``key`` belongs to the held-out part; equal everywhere and always."""
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT_SHARE == 0


@lru_cache(maxsize=4096)
def _choices(slot: str, split: Split) -> tuple[str, ...]:
    words = WORDS[slot]
    if slot in _NUMERALS:
        return words
    chosen = tuple(word for word in words if held_out(word) == (split == "heldout"))
    return chosen or words


@lru_cache(maxsize=64)
def _patterns(topic: str, split: Split) -> tuple[str, ...]:
    return tuple(pattern for pattern in PATTERNS[topic] if held_out(pattern) == (split == "heldout"))


def topics(split: Split, *, questions: bool = False) -> tuple[str, ...]:
    """Topics that have a pattern in ``split``."""
    return tuple(name for name in PATTERNS if (name == "questions") == questions and _patterns(name, split))


def sentence(choice: random.Random, split: Split, topic: str | None = None) -> str:
    """One sentence; of a random topic unless one is given."""
    topic = topic or choice.choice(topics(split))
    text = _fill(choice.choice(_patterns(topic, split)), choice, split)
    return _finish(text, question=topic == "questions" or text.startswith(("Can ", "Are ", "did ")))


def question(choice: random.Random, split: Split) -> str:
    """One question."""
    return sentence(choice, split, "questions")


def passage(choice: random.Random, split: Split) -> str:
    """Four to twenty sentences, mostly of one topic: about 60 to 350 tokens."""
    topic = choice.choice(topics(split))
    parts = []
    for _ in range(choice.randint(4, 20)):
        other = choice.random() < 0.25
        text = sentence(choice, split, None if other else topic)
        parts.append(text if text[-1] in ".?!" else f"{text}.")
    return " ".join(parts)


def remark(choice: random.Random, split: Split) -> str:
    """A few words with hardly any content, as people say them; a text of its own belongs to one split by its hash.

    Attention in so short a text falls on few tokens, and activations go further than in any longer sentence.
    """
    while True:
        text = _remark(choice)
        if held_out(text) == (split == "heldout"):
            return text


def _remark(choice: random.Random) -> str:
    pick = choice.choice
    kind = choice.randrange(3)
    if kind == 0:
        words = [pick(SPEAKERS), pick(DEEDS)[1], pick(THINGS), pick(TAILS)]
    elif kind == 1:
        words = [pick(ASKING), pick(SPEAKERS), pick(DEEDS)[0], pick(THINGS), pick(TAILS)]
    else:
        words = [pick(POINTING), pick(JUDGING), pick(QUALITIES), pick(KINDS)]
    text = " ".join(word for word in words if word)
    return text[0].upper() + text[1:] + ("?" if kind == 1 else pick((".", ".", ".", "!", "...")))


def _fill(pattern: str, choice: random.Random, split: Split) -> str:
    def word(found: re.Match[str]) -> str:
        slot, form = found[1], found[2]
        # A verb phrase is put into its form before its own slots are filled.
        text = _inflect(choice.choice(_choices(slot, split)), form)
        return _fill(text, choice, split)

    return _SLOT.sub(word, pattern)


def _inflect(text: str, form: str | None) -> str:
    if form is None:
        return text
    if form == "many":
        return plural(text)
    verb, _, rest = text.partition(" ")
    return f"{_FORMS[form](verb)} {rest}".strip()


def plural(noun: str) -> str:
    """The plural of an English noun."""
    if noun in MANY:
        return MANY[noun]
    if noun.endswith(("s", "x", "ch", "sh")) or noun in ("potato", "tomato"):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _regular_past(verb: str) -> str:
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return _doubled(verb) + "ed"


def _doubled(verb: str) -> str:
    """The stem before -ed and -ing: stop -> stopp, but wait -> wait, open -> open."""
    short = re.fullmatch(r"[^aeiou]*[aeiou][bdglmnprt]", verb)
    return verb + verb[-1] if short else verb


def _past(verb: str) -> str:
    return FORMS[verb][0] if verb in FORMS else _regular_past(verb)


def _done(verb: str) -> str:
    return FORMS[verb][1] if verb in FORMS else _regular_past(verb)


def _ing(verb: str) -> str:
    if verb in ("lie", "tie"):
        return verb[:-2] + "ying"
    return (verb[:-1] if verb.endswith("e") else _doubled(verb)) + "ing"


def _third(verb: str) -> str:
    if verb in ("go", "do"):
        return verb + "es"
    return plural(verb)


_FORMS = {"past": _past, "done": _done, "ing": _ing, "third": _third}


def _finish(text: str, *, question: bool) -> str:
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    text = re.sub(r"\b([Tt])he (?:the|our|his|her|my|a) ", r"\1he ", text)
    if question and not text.endswith("?"):
        text = text.rstrip(".") + "?"
    # Some captions and headlines begin in lower case on purpose: they are the patterns without a full stop.
    return text[0].upper() + text[1:] if text[-1] in ".?" else text
