"""Values from records that a stranger may have written: text becomes one printable line, numbers become finite."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from compresskit.checkpoint.files import printable

LARGEST = 1e15
MOST_CHARACTERS = 300
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")


def text(value: object, limit: int = MOST_CHARACTERS) -> str:
    """One line without control characters, marks that reorder text and access tokens; at most ``limit`` characters."""
    shown = value[: 4 * limit] if isinstance(value, str) else _plain(value, limit)
    return printable(_TOKEN.sub("hf_***", shown), limit)


def _plain(value: object, limit: int) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        known = number(value)
        return "not a usable number" if known is None else f"{known:.10g}"
    if isinstance(value, dict | list | tuple):
        return "".join(_pieces(value, limit))
    return str(value)


def _pieces(value: Any, limit: int) -> list[str]:
    """The JSON of ``value`` in pieces, no more of them than are shown."""
    pieces: list[str] = []
    length = 0
    for piece in json.JSONEncoder(ensure_ascii=False, default=str).iterencode(value):
        pieces.append(piece)
        length += len(piece)
        if length > limit:
            break
    return pieces


def number(value: object, *, largest: float = LARGEST) -> float | None:
    """``value`` as a float if it is a finite number of a size that can be drawn, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int) and abs(value) > largest:
        return None
    return float(value) if math.isfinite(value) and abs(value) <= largest else None


def positive(value: object, *, largest: float = LARGEST) -> float | None:
    """Like `number`, and above 1e-12, so that it has a logarithm."""
    found = number(value, largest=largest)
    return found if found is not None and found > 1e-12 else None


def interval(value: object, *, largest: float = LARGEST) -> tuple[float, float] | None:
    """``(low, high)`` if ``value`` is a pair of numbers in order, else None."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = (number(bound, largest=largest) for bound in value)
    return (low, high) if low is not None and high is not None and low <= high else None


def records(value: object) -> list[dict[str, Any]]:
    """The dictionaries in ``value`` if it is a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list | tuple) else []


def mapping(value: object) -> dict[str, Any]:
    """``value`` if it is a dictionary, else an empty one."""
    return value if isinstance(value, dict) else {}


def finite(value: Any) -> Any:
    """JSON-able ``value`` with None for numbers that JSON can't write."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
