"""A sentence with two entities and a relation, and how entities are put at tokens.

Spans are [first, after last) in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compresskit.errors import DataError

Span = tuple[int, int]


@dataclass(frozen=True)
class Instance:
    """One sentence.

    Args:
        tokens: its words.
        head, tail: spans of the entities, not empty, inside the sentence.
        relation: by name.
        pair: the bag key: the same for all sentences of one pair of entities.
    """

    tokens: tuple[str, ...]
    head: Span
    tail: Span
    relation: str
    pair: str


def instance(tokens: Sequence[str], head: Any, tail: Any, relation: str, pair: str, where: str) -> Instance:
    """A checked ``Instance``.

    Raises:
        DataError: CK-D060, a span outside the sentence or an empty bag key.
    """
    spans = []
    for name, span in (("head", head), ("tail", tail)):
        fine = (
            isinstance(span, list | tuple)
            and len(span) == 2
            and all(type(place) is int for place in span)
            and 0 <= span[0] < span[1] <= len(tokens)
        )
        if not fine:
            raise DataError(
                "CK-D060",
                f"the {name} entity {span!r:.60} is no span of {len(tokens)} tokens",
                where=where,
                fix="spans are [first, after last), counted in tokens",
            )
        spans.append((span[0], span[1]))
    if not str(pair).strip() or str(pair).strip() == "###":
        raise DataError(
            "CK-D061",
            "the bag key is empty",
            where=where,
            why="all sentences without a key would be one bag",
            fix="give each pair of entities a key of its own",
        )
    return Instance(tuple(tokens), spans[0], spans[1], str(relation), str(pair))


def find_entity(tokens: Sequence[str], name: str, where: str) -> Span:
    """The first place of ``name``, words joined by blanks or underscores, among ``tokens``.

    Raises:
        DataError: CK-D060, it isn't there.
    """
    words = name.replace("_", " ").split()
    for start in range(len(tokens)):
        joined: list[str] = []
        for end in range(start, min(len(tokens), start + len(words))):
            joined += tokens[end].replace("_", " ").split()
            if joined == words:
                return start, end + 1
    raise DataError(
        "CK-D060", f"the entity {name!r:.60} isn't in its sentence", where=where, fix="correct the sentence or the name"
    )
