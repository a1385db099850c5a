"""``compresskit inspect``: where a model's bytes, FLOPs and milliseconds are."""

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
    """Show where a model's bytes, FLOPs and milliseconds are."""
    from compresskit import pipeline

    found = pipeline.inspect(model, match=match, batch=batch, length=length, timed=timed).to_dict()
    Output(json=json).result(found, _view(found))


def _view(found: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.text import Text

    from compresskit.report.numbers import megabytes, millions
    from compresskit.report.profiled import by_kind, lines

    kept = "stock checkpoint" if found["native"] else f"compressed, {found['operations']} layout operations"
    head = (
        f"{found['model']}: {found['architecture']}, {millions(found['parameters'])} parameters,"
        f" {megabytes(found['disk_bytes'])} to serve; {kept}"
    )
    parts = found["parts"]
    kinds = by_kind(lines(parts))
    shown: list[Any] = [Text(head), Text(""), _tree(parts), Text(""), _kinds(kinds, lines(parts))]
    shown.append(
        Text("A multiply-add is two FLOPs; ms is CPU time of one thread. What is inside a block is in its sums.")
    )
    if found["matches"] is not None:
        shown.append(Text(f"{len(found['matches'])} sites match"))
        shown += [Text(f"  {entry['kind']:<10} {entry['path'] or 'the model'}") for entry in found["matches"]]
    return Group(*shown)


def _table(first: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in (first, "parameters", "bytes", "", "FLOPs", "", "ms", "", "layers"):
        table.add_column(name, justify="left" if name in (first, "layers") else "right", no_wrap=name != "layers")
    return table


def _tree(parts: list[dict[str, Any]]) -> Any:
    """The parts under each other, what is inside a block drawn below it."""
    from rich.text import Text

    from compresskit.report.profiled import INNER, lines

    table = _table("part")
    known = lines(parts)
    block = ""
    for index, (part, line) in enumerate(zip(parts, known, strict=True)):
        if line.kind in INNER:
            last = index + 1 == len(known) or known[index + 1].kind not in INNER
            name = ("└─ " if last else "├─ ") + line.name.removeprefix(f"{block}.")
        else:
            name = block = line.name
        layers = ", ".join(f"{count} {kind}" for kind, count in sorted(part["layers"].items()))
        table.add_row(Text(name), *_figures(line, known), Text(layers))
    return table


def _kinds(kinds: list[Any], parts: list[Any]) -> Any:
    from rich.text import Text

    table = _table("kind")
    for line in kinds:
        table.add_row(Text(line.name + (f" × {line.count}" if line.count > 1 else "")), *_figures(line, parts), "")
    return table


def _figures(line: Any, parts: list[Any]) -> list[str]:
    from compresskit.report.numbers import flops_text, held, millions
    from compresskit.report.profiled import whole

    shown = [millions(int(line.parameters or 0))]
    for name, write in (("bytes", held), ("flops", flops_text), ("milliseconds", "{:.2f}".format)):
        value, total = line.measure(name), whole(parts, name)
        shown.append("" if value is None else write(value))
        shown.append("" if value is None or not total else f"{100 * value / total:.0f} %")
    return shown
