"""``compresskit compress``: one line from a model to a smaller one, by a shipped recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import _options as option


def compress(
    model: Annotated[str, typer.Argument(help="a folder, a hub id, or pkg:NAME")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the folder to make")],
    preset: Annotated[str, typer.Option("--preset", help="a shipped recipe: `compresskit recipes list`")] = "int8",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing output")] = False,
    threads: option.Threads = None,
    low_memory: option.LowMemory = False,
    quiet: option.Quiet = False,
    json: option.Json = False,
) -> None:
    """Compress a model by a shipped recipe: the short form of `apply`."""
    from compresskit.cli.apply import apply

    apply(
        preset,
        model=model,
        output=output,
        overwrite=overwrite,
        threads=threads,
        low_memory=low_memory,
        quiet=quiet,
        json=json,
    )
