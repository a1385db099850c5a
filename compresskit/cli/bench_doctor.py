"""``compresskit bench doctor``: is this machine fit for timings, and how small a change can it tell?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output, table


def bench_doctor(
    seconds: Annotated[float, typer.Option("--seconds", min=0.5, max=600, help="how long to measure")] = 5.0,
    threads: Annotated[int, typer.Option("--threads", min=1, help="threads of the measured work")] = 1,
    json: option.Json = False,
) -> None:
    """Look at load, clocks and limits, then measure the same work against itself: the noise floor."""
    from compresskit.bench.doctor import diagnose

    found = diagnose(seconds=seconds, threads=threads)
    low, high = found.noise
    rows = [(line.level, line.what, line.fix) for line in found.lines]
    rows.append(("ok" if found.fit == "good" else "warn", f"the same work against itself: {low:.3f} to {high:.3f}", ""))
    data = {**asdict(found), "noise": list(found.noise)}
    Output(json=json).result(data, table(("", "", ""), rows))
