"""``compresskit bench``: which of these models is faster, on this machine, beyond its noise?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output
from compresskit.cli.bench_compare import bench_compare
from compresskit.cli.bench_doctor import bench_doctor
from compresskit.cli.bench_report import bench_report
from compresskit.cli.bench_scale import bench_scale
from compresskit.cli.suite import suite
from compresskit.errors import UsageError

bench = typer.Typer(help="Compare models on this machine, in turns, with the noise shown.", no_args_is_help=True)
bench.command("compare")(bench_compare)
bench.command("report")(bench_report)
bench.command("doctor")(bench_doctor)
bench.command("scale")(bench_scale)
bench.command("suite")(suite)


@bench.command()
def run(
    models: Annotated[
        list[str], typer.Argument(help="checkpoints, hub ids, .onnx files; ENGINE=MODEL chooses an engine for one")
    ],
    baseline: Annotated[str | None, typer.Option("--baseline", help="default: the first model")] = None,
    profile: Annotated[
        str, typer.Option("--profile", help="quick: a minute; standard: 5 processes an arm; publish: hours")
    ] = "quick",
    device: option.Device = "cpu",
    dtype: option.Dtype = None,
    threads: Annotated[str, typer.Option("--threads", help="of each model; several with commas")] = "1",
    scenario: Annotated[
        str | None, typer.Option("--scenario", help="encode, prefill, decode, offline; several with commas")
    ] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="torch, onnxruntime or openvino")] = None,
    batch: Annotated[str, typer.Option("--batch", help="rows of the input; several with commas")] = "1",
    length: Annotated[
        str | None,
        typer.Option("--length", help="tokens of a row; several with commas; default: 128 or the model's most"),
    ] = None,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=2, help="that decode writes")] = 32,
    onnx: Annotated[
        bool | None, typer.Option("--onnx/--no-onnx", help="ONNX Runtime float32 beside torch; default: but in quick")
    ] = None,
    control: Annotated[bool, typer.Option("--control/--no-control", help="the baseline against itself")] = True,
    energy: Annotated[
        bool | None, typer.Option("--energy/--no-energy", help="count joules; default: in publish")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="score the outputs: sts, classification, relation_extraction, …")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="file, folder or hub: name of the task's examples")
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="use the first so many examples")] = None,
    delta: Annotated[float, typer.Option("--delta", min=0.001, max=0.5, help="a change this small is the SAME")] = 0.02,
    seed: option.Seed = 0,
    interleave: Annotated[
        str, typer.Option("--interleave", help="resident, process (one model loaded at a time), auto")
    ] = "auto",
    full_env: Annotated[bool, typer.Option("--full-env", help="host, user and folder in clear")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the record, JSON; a journal lies beside it")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the journal of -o")] = False,
    quiet: option.Quiet = False,
    json: option.Json = False,
) -> None:
    """Time models in turns, each in processes of its own, and say which is faster beyond the machine's noise."""
    from compresskit.bench.options import BenchOptions
    from compresskit.bench.run import run as measure
    from compresskit.cli._bench_view import record_view

    if resume and output is None:
        raise UsageError("CK-B016", "--resume needs to know what to resume", fix="give the same -o as before")
    options = BenchOptions(
        models=tuple(models),
        baseline=baseline,
        profile=profile,
        device=device,
        dtype=dtype,
        threads=option.numbers("--threads", threads),
        scenarios=tuple(option.words(scenario)),  # type: ignore[arg-type]
        engine=engine,
        batches=option.numbers("--batch", batch),
        lengths=option.numbers("--length", length) if length else (),
        new_tokens=new_tokens,
        seed=seed,
        delta=delta,
        control=control,
        onnx=onnx,
        energy=energy,
        interleave=interleave,  # type: ignore[arg-type]
        full_env=full_env,
        task=task,
        data=data,
        samples=samples,
    )
    out = Output(json=json, quiet=quiet)
    with out.progress() as progress:
        record = measure(options, output, resume=resume, progress=progress)
    content = record.to_dict()
    content.pop("blocks")  # they are in the file
    out.result(content, record_view(record, where=str(output or "")))
