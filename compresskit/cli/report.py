"""``compresskit report``: the page of one apply."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output


def report(
    folder: Annotated[Path, typer.Argument(help="a compressed checkpoint, or its report.json")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the HTML file; default: report.html here")
    ] = None,
    json: option.Json = False,
) -> None:
    """Write one self-contained HTML page of what an apply did, measured."""
    from compresskit.report.page import apply_page, read_report

    content = read_report(folder)
    target = output or Path("report.html")
    target.write_text(apply_page(content), encoding="utf-8")
    Output(json=json).result({"page": str(target), "bytes": target.stat().st_size}, f"written to {target}")
