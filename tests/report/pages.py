"""What tests of pages share: reading a page, and making a record hostile."""

from __future__ import annotations

import html.parser
import json
from typing import Any

# Strings that the schema fixes; all others may be anything.
FIXED = {"schema", "role", "verdict", "status", "interleave", "scenario", "fit", "kind"}


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def hostile(value: Any, evil: str, key: str = "") -> Any:
    """``value`` with ``evil`` for every free string, keys of free dictionaries included."""
    if isinstance(value, str):
        return value if key in FIXED else f"{evil}{value}"
    if isinstance(value, list):
        return [hostile(item, evil, key) for item in value]
    if isinstance(value, dict):
        free = key in ("cpu", "packages", "system", "details", "skipped", "guards", "variables")
        return {f"{evil}{name}" if free else name: hostile(item, evil, name) for name, item in value.items()}
    return value


def loads(value: Any) -> Any:
    """Lone surrogates are refused where the schema names a string; elsewhere they may come."""
    return json.loads(json.dumps(value).replace("\\ud800", "?"))
