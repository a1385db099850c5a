"""Options that several verbs share, with one wording each, and lists with commas."""

from __future__ import annotations

from typing import Annotated

import typer

from compresskit.errors import UsageError

Model = Annotated[
    str | None, typer.Option("--model", "-m", help="a folder, a hub id, or pkg:NAME for an installed model package")
]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="load as float32, bfloat16 or float16; default: as stored")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="threads of every computation")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="every random choice derives from it")]
Revision = Annotated[str | None, typer.Option("--revision", help="commit or branch of a hub model")]
Plugins = Annotated[list[str] | None, typer.Option("--plugin", help="import an installed plug-in; repeatable")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="run the model's own code; needs --revision with a full commit")
]
Strict = Annotated[bool, typer.Option("--strict", help="treat skipped sites and settings without effect as errors")]
LowMemory = Annotated[
    bool, typer.Option("--low-memory", help="one block in memory at a time; `plan` says which methods can")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object, last on stdout")]


def words(text: str | None) -> list[str]:
    """The words of a list with commas."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def numbers(name: str, text: str) -> tuple[int, ...]:
    """The numbers of a list with commas, each once.

    Raises:
        UsageError: CK-B017.
    """
    found = words(text)
    if not found or not all(word.isascii() and word.isdigit() for word in found):
        raise UsageError("CK-B017", f"{name} {text!r:.60} is no list of numbers", fix=f"such as {name} 1,2")
    return tuple(dict.fromkeys(int(word) for word in found))
