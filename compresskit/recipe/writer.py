"""Recipes as YAML text that both our strict reader and YAML 1.1 readers take for the same data."""

from __future__ import annotations

import re
from typing import Any

import yaml

from compresskit.recipe.strict_yaml import FLOAT, INTEGER, NOT_FINITE


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or 1.2 would take for something else than text; never writes an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_LINE_BREAKS = re.compile(r"[\n\r\x85\u2028\u2029\ufeff]")


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Other styles fold line breaks, and not all of them back to what they were.
    style = '"' if _LINE_BREAKS.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
_NUMBER = re.compile(rf"(?:{INTEGER.pattern}|{FLOAT.pattern}|{NOT_FINITE.pattern})\Z")
# The tag is never written: a match only tells the emitter that plain text would be misread.
_Dumper.add_implicit_resolver("tag:compresskit:number", _NUMBER, list("-+.0123456789"))


def to_yaml(content: dict[str, Any]) -> str:
    """``content`` as block YAML, short lists and inner mappings in one line, keys in their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None)
