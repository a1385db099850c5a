"""``compresskit verify``: is a compressed checkpoint still what was written?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output


def verify(
    folder: Annotated[Path, typer.Argument(help="a compressed checkpoint")],
    json: option.Json = False,
) -> None:
    """Check hashes, layout and values of a compressed checkpoint, and load it in a fresh process."""
    from compresskit import pipeline
    from compresskit.report.numbers import megabytes

    found = pipeline.verify(folder)
    text = (
        f"{found.folder}: {found.files} files match the manifest, {megabytes(found.disk_bytes)} to serve;"
        f" a fresh process gives the same outputs (difference {found.reload_max_abs_diff:.1e})"
    )
    Output(json=json).result(found.to_dict(), text)
