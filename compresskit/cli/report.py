"""``compresskit report``: the page of one apply."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output
from compresskit.errors import CompressKitError


def report(
    folder: Annotated[Path, typer.Argument(help="a compressed checkpoint, or its report.json")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the HTML file; default: report.html here")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile/--no-profile", help="load the result and show where its bytes and time are")
    ] = True,
    json: option.Json = False,
) -> None:
    """Write one self-contained HTML page of what an apply did, measured."""
    from compresskit.report.apply_report import read_report
    from compresskit.report.page import apply_page

    out = Output(json=json)
    content = read_report(folder)
    parts = None
    if profile and folder.is_dir():
        from compresskit import pipeline

        try:
            parts = [part.to_dict() for part in pipeline.inspect(folder).parts]
        except CompressKitError as error:
            out.note(f"the page has no profile of the result: {error.what}")
    target = output or Path("report.html")
    target.write_text(apply_page(content, parts), encoding="utf-8")
    out.result({"page": str(target), "bytes": target.stat().st_size}, f"written to {target}")
