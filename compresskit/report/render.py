"""The page itself: one file, no network, no script; a Content-Security-Policy that allows its own style sheet only."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from compresskit.report.content import Part

MOST_BYTES = 1_000_000
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("compresskit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    source, _, _ = environment.loader.get_source(environment, "page.css")  # type: ignore[union-attr]
    style = "\n".join(line.strip() for line in source.splitlines() if line.strip())
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment.globals["style"] = Markup(style)  # our own file
    environment.globals["policy"] = Markup(  # no foreign text
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return environment


def _printable(value: object) -> object:
    """Foreign text without control characters and marks that reorder text, whatever way it came."""
    return _CONTROL.sub("", value) if isinstance(value, str) and not isinstance(value, Markup) else value


def render(title: str, parts: Sequence[Part], *, footer: str = "") -> str:
    """HTML of ``parts`` under ``title``."""
    return _environment().get_template("page.html.j2").render(title=title, parts=parts, footer=footer)
