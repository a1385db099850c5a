"""``compresskit bench report``: one page, a Markdown table and rows of CSV from benchmark records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output
from compresskit.errors import UsageError


def bench_report(
    records: Annotated[list[Path], typer.Argument(help="what `bench run` or `bench suite` wrote")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the HTML file")] = Path("report.html"),
    markdown: Annotated[bool, typer.Option("--md", help="also a Markdown table, beside it as .md")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="also every figure as a row, beside it as .csv")] = False,
    json: option.Json = False,
) -> None:
    """Write one self-contained HTML page that shows the trade: quality, latency, size, noise, warnings first."""
    from compresskit.bench.files import write_atomically
    from compresskit.report import bench_page, bench_tables
    from compresskit.report.given import read_given

    targets = {"page": output}
    targets |= {"markdown": output.with_suffix(".md")} if markdown else {}
    targets |= {"csv": output.with_suffix(".csv")} if csv else {}
    _refuse_to_overwrite(records, list(targets.values()))
    given = read_given(records)
    named = given.records
    texts = {"page": bench_page.bench_page(named, given.suites)}
    if markdown:
        texts["markdown"] = bench_page.markdown_page(named)
    if csv:
        texts["csv"] = bench_tables.csv_text(named)
    for kind, target in targets.items():
        write_atomically(target, texts[kind])
    data = {kind: str(target) for kind, target in targets.items()}
    sizes = {"bytes": len(texts["page"].encode()), "records": len(named)}
    Output(json=json).result({**data, **sizes}, f"written to {', '.join(data.values())}")


def _refuse_to_overwrite(records: list[Path], targets: list[Path]) -> None:
    given = {path.resolve() for path in records}
    taken = [target for target in targets if target.resolve() in given]
    if taken or len({target.resolve() for target in targets}) < len(targets):
        raise UsageError(
            "CK-B040",
            f"the page would overwrite {taken[0] if taken else targets[0]}",
            fix="give another -o, ending in .html",
        )
