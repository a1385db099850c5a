"""JSON of strangers: bounded in size and depth, no key twice, no NaN, and one typed error."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compresskit.checkpoint.files import Identity, printable, read_small
from compresskit.errors import ModelError

MOST_DEPTH = 64
MOST_DIGITS = 64


def parse(content: bytes, where: str, *, depth: int = MOST_DEPTH) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ModelError: CK-M006.
    """
    try:
        value = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_unique,
            parse_constant=_constant,
            parse_int=_integer,
        )
    except (ValueError, RecursionError) as error:
        nested = isinstance(error, RecursionError)
        raise _malformed(where, "it is nested too deeply" if nested else printable(error)) from None
    if _deeper(value, depth):
        raise _malformed(where, f"it is nested more than {depth} deep")
    return value


def read_json(path: Path, limit: int) -> tuple[Any, str, Identity]:
    """The value in the file ``path``, its sha256, and the identity of the file, all of the same bytes.

    Raises:
        ModelError: CK-M006, malformed, or above ``limit`` bytes.
    """
    content, identity = read_small(path, limit)
    return parse(content, printable(path)), hashlib.sha256(content).hexdigest(), identity


def walk(value: Any) -> Iterator[tuple[str, str, Any]]:
    """Every (dotted place, key, value) of nested objects and lists; the key of a list's item is the list's."""
    waiting: list[tuple[str, str, Any]] = [("", "", value)]
    while waiting:
        place, key, item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend((f"{place}.{name}" if place else name, name, inner) for name, inner in item.items())
        elif isinstance(item, list):
            waiting.extend((f"{place}[{number}]", key, inner) for number, inner in enumerate(item))
        if place:
            yield place, key, item


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {printable(twice, 60)!r} stands twice")
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no number")
    return float(name)


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _malformed(where: str, why: str) -> ModelError:
    return ModelError(
        "CK-M006",
        "a JSON file of the model can't be read",
        where=where,
        why=why,
        fix="restore the file from where the model came from",
    )
