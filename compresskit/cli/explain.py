"""``compresskit explain``: the long form of an error."""

from __future__ import annotations

import difflib
from importlib.resources import files
from typing import Annotated, Any

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output, table
from compresskit.errors import UsageError


def codes() -> dict[str, dict[str, str]]:
    """Every error code with its ``title`` and ``help``, in order."""
    from compresskit.recipe.strict_yaml import parse_yaml

    text = files("compresskit").joinpath("error_codes.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = parse_yaml(text, "error_codes.yaml").data
    return dict(sorted(content.items()))


def explain(
    code: Annotated[str | None, typer.Argument(help="as in error[CK-R010]; without it, all are listed")] = None,
    json: option.Json = False,
) -> None:
    """Explain an error code: what causes it, and what to do."""
    known = codes()
    out = Output(json=json)
    if code is None:
        view = table(("", ""), ((name, entry["title"]) for name, entry in known.items()))
        out.result({"codes": known}, view)
        return
    wanted = code.strip().upper().removeprefix("ERROR[").removesuffix("]")
    wanted = wanted if wanted.startswith("CK-") else f"CK-{wanted}"
    if wanted not in known:
        close = difflib.get_close_matches(wanted, known, n=3)
        fix = f"did you mean {', '.join(close)}?" if close else "`compresskit explain` lists all codes"
        raise UsageError("CK-U016", f"there is no error code {code!r}", fix=fix)
    entry = known[wanted]
    out.result({"code": wanted, **entry}, f"{wanted}: {entry['title']}\n\n{entry['help'].rstrip()}")
