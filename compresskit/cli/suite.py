"""``compresskit bench suite``: many recipes, models and tasks from one baseline, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output, table

if TYPE_CHECKING:
    from rich.console import RenderableType


def suite(
    path: Annotated[Path, typer.Argument(metavar="SUITE", help="a suite's file: see benchmarks/suites/")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder of records, cells and the summary")],
    resume: Annotated[
        bool, typer.Option("--resume", help="skip what was finished with the same recipe and machine")
    ] = False,
    quiet: option.Quiet = False,
    json: option.Json = False,
) -> None:
    """Apply every recipe to every model, reopen, export, score and time the results beside their source."""
    from compresskit.suite.run import run_suite
    from compresskit.suite.schema import load

    out = Output(json=json, quiet=quiet)
    with out.progress() as progress:
        content = run_suite(load(path), output, resume=resume, tell=progress)
    out.result(content, _view(content, output))
    if content["failed"]:
        raise typer.Exit(1)


def _view(content: dict[str, Any], output: Path) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from compresskit.suite.summary import cells, notes

    titles, rows = cells(content)
    places = [output / f"{content['name']}.{suffix}" for suffix in ("json", "md")]
    return Group(table(titles, rows), *(Text(line) for line in [*notes(content), "", *map(str, places)]))
