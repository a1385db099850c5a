"""``compresskit bench``: which of these models is faster, on this machine, beyond its noise?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output
from compresskit.cli.bench_report import bench_report

bench = typer.Typer(help="Compare models on this machine, in turns, with the noise shown.", no_args_is_help=True)
bench.command("report")(bench_report)


@bench.command()
def run(
    models: Annotated[list[str], typer.Argument(help="checkpoints or .onnx files; the first is the baseline")],
    batch: Annotated[int, typer.Option("--batch", min=1, help="rows of the input")] = 1,
    length: Annotated[int, typer.Option("--length", min=1, help="tokens of a row")] = 128,
    rounds: Annotated[int, typer.Option("--rounds", min=3, help="how often each model takes its turn")] = 15,
    threads: Annotated[int, typer.Option("--threads", min=1, help="threads of each model")] = 1,
    quiet: option.Quiet = False,
    json: option.Json = False,
) -> None:
    """Time models in turns; the baseline against itself gives the noise."""
    from compresskit.bench.quick import compare

    out = Output(json=json, quiet=quiet)
    with out.progress() as progress:
        rows = [
            row.to_dict()
            for row in compare(models, batch=batch, length=length, rounds=rounds, threads=threads, progress=progress)
        ]
    out.result({"rows": rows, "batch": batch, "length": length, "threads": threads}, _view(rows))


def _view(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    from compresskit.report.numbers import megabytes

    table = Table(box=None, pad_edge=False)
    for name in ("model", "engine", "size", "p50 (CPU ms)", "speed-up (95 % interval)", "verdict"):
        table.add_column(name)
    for row in rows:
        ratio = f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        table.add_row(
            Text(row["model"]),
            row["engine"],
            megabytes(row["disk_bytes"]),
            f"{row['p50_ms']:.2f}",
            ratio,
            row["verdict"],
        )
    return table
