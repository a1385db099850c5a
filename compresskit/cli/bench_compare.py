"""``compresskit bench compare``: what changed between two records, and whether it may."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output
from compresskit.errors import GateError


def bench_compare(
    before: Annotated[Path, typer.Argument(help="a record of `bench run`")],
    after: Annotated[Path, typer.Argument(help="another, of the same machine and work")],
    gate: Annotated[
        list[str] | None,
        typer.Option("--gate", help='a bound: "p50<=-10%", "quality>=-0.5pp", "size<=0.30x"; repeatable'),
    ] = None,
    allow_env_diff: Annotated[
        bool, typer.Option("--allow-env-diff", help="show records of different machines, without verdicts")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="a gate that can't be told is missed")] = False,
    md: Annotated[bool, typer.Option("--md", help="Markdown, for a pull request")] = False,
    json: option.Json = False,
) -> None:
    """Compare two records. Exit status: 0, 1 a gate was missed, 3 the records can't be compared."""
    from compresskit.bench import record
    from compresskit.bench.gates import compare, parse_gate
    from compresskit.cli._bench_view import comparison_markdown, comparison_view

    gates = [parse_gate(text) for text in gate or []]
    found = compare(record.read(before), record.read(after), gates, allow_env_diff=allow_env_diff)
    data = {**found.to_dict(), "passed": not found.failed(strict=strict)}
    Output(json=json).result(data, comparison_markdown(found).rstrip("\n") if md else comparison_view(found))
    if found.failed(strict=strict):
        raise typer.Exit(GateError.exit_code)
