"""``compresskit bench scale``: how a model's cost grows with length and batch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output, table


def bench_scale(
    models: Annotated[list[str], typer.Argument(help="as for `bench run`")],
    length: Annotated[str, typer.Option("--length", help="tokens of a row, with commas")] = "32,64,128,256",
    batch: Annotated[str, typer.Option("--batch", help="rows of the input, with commas")] = "1",
    scenario: Annotated[str | None, typer.Option("--scenario", help="encode, prefill or decode")] = None,
    profile: Annotated[str, typer.Option("--profile", help="quick, standard or publish")] = "quick",
    engine: Annotated[str | None, typer.Option("--engine", help="torch, onnxruntime or openvino")] = None,
    device: option.Device = "cpu",
    threads: Annotated[int, typer.Option("--threads", min=1, help="of each model")] = 1,
    seed: option.Seed = 0,
    plot: Annotated[Path | None, typer.Option("--plot", help="write the curves here, .svg or .png")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="the record, JSON")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the journal of -o")] = False,
    quiet: option.Quiet = False,
    json: option.Json = False,
) -> None:
    """Time models over lengths and batches, and fit the exponent of cost: 1 is linear, 2 is full attention's."""
    from compresskit.bench import scale
    from compresskit.bench.options import BenchOptions
    from compresskit.bench.run import run

    if plot is not None:
        scale.check_plot(plot)
    options = BenchOptions(
        models=tuple(models),
        profile=profile,
        engine=engine,
        device=device,
        threads=(threads,),
        scenarios=tuple(option.words(scenario)),  # type: ignore[arg-type]
        lengths=option.numbers("--length", length),
        batches=option.numbers("--batch", batch),
        seed=seed,
        control=False,
        onnx=False,
        details=False,
    )
    out = Output(json=json, quiet=quiet)
    with out.progress() as progress:
        record = run(options, output, resume=resume, progress=progress)
    found = scale.fits(record)
    if plot is not None:
        scale.plot(found, plot)
    rows = [
        [
            fit.arm,
            f"{fit.axis} at {'batch' if fit.axis == 'length' else 'length'} {fit.fixed}",
            ", ".join(f"{point.at}: {point.milliseconds:.2f}" for point in fit.points),
            f"{fit.exponent:.2f} [{fit.ci[0]:.2f}, {fit.ci[1]:.2f}]",
            f"{fit.last:.2f} [{fit.last_ci[0]:.2f}, {fit.last_ci[1]:.2f}]",
        ]
        for fit in found
    ]
    data = {"fits": [fit.to_dict() for fit in found], "record": str(output or ""), "plot": str(plot or "")}
    out.result(data, table(("model", "over", "median ms", "exponent", "last step"), rows))
