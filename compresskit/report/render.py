"""The page itself: one file, no network, no script; a Content-Security-Policy that allows its own style sheet only."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from compresskit.report.content import Part

MOST_BYTES = 1_000_000


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("compresskit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source, _, _ = environment.loader.get_source(environment, "page.css")  # type: ignore[union-attr]
    style = "\n".join(line.strip() for line in source.splitlines() if line.strip())
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment.globals["style"] = Markup(style)  # our own file
    environment.globals["policy"] = Markup(  # no foreign text
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return environment


def render(title: str, parts: Sequence[Part], *, footer: str = "") -> str:
    """HTML of ``parts`` under ``title``."""
    return _environment().get_template("page.html.j2").render(title=title, parts=parts, footer=footer)
