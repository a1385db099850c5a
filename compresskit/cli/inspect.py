"""``compresskit inspect``: where a model's bytes and milliseconds are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output


def inspect(
    model: Annotated[str, typer.Argument(help="a folder, a hub id, or pkg:NAME")],
    match: Annotated[str | None, typer.Option("--match", help="list the sites that this pattern names")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="rows of the timed forward")] = 1,
    length: Annotated[int, typer.Option("--length", min=2, help="tokens of the timed forward")] = 64,
    timed: Annotated[bool, typer.Option("--time/--no-time", help="time a forward, one thread")] = True,
    json: option.Json = False,
) -> None:
    """Show where a model's bytes and milliseconds are."""
    from compresskit import pipeline

    found = pipeline.inspect(model, match=match, batch=batch, length=length, timed=timed).to_dict()
    Output(json=json).result(found, _view(found))


def _view(found: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from compresskit.report.numbers import megabytes, millions

    kept = "stock checkpoint" if found["native"] else f"compressed, {found['operations']} layout operations"
    head = (
        f"{found['model']}: {found['architecture']}, {millions(found['parameters'])} parameters,"
        f" {megabytes(found['disk_bytes'])} to serve; {kept}"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("part", "kind", "parameters", "bytes", "share", "ms", "layers"):
        table.add_column(name, justify="right" if name in ("parameters", "bytes", "share", "ms") else "left")
    total = max(1, found["weight_bytes"])
    for part in found["parts"]:
        inner = "  " if part["kind"] in ("attention", "ffn") else ""
        milliseconds = "" if part["milliseconds"] is None else f"{part['milliseconds']:.2f}"
        layers = ", ".join(f"{count} {name}" for name, count in sorted(part["layers"].items()))
        table.add_row(
            Text(inner + part["path"]),
            part["kind"],
            millions(part["parameters"]),
            megabytes(part["bytes"]),
            f"{100 * part['bytes'] / total:.1f} %",
            milliseconds,
            Text(layers),
        )
    lines: list[Any] = [Text(head), table]
    if found["matches"] is not None:
        lines.append(Text(f"{len(found['matches'])} sites match"))
        lines += [Text(f"  {entry['kind']:<10} {entry['path'] or 'the model'}") for entry in found["matches"]]
    return Group(*lines)
