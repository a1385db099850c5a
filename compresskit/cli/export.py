"""``compresskit export``: a checkpoint becomes an ONNX file that was seen to compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from compresskit.export import ExportReport
    from compresskit.pipeline.profiles import Candidate

_MOST_OPERATORS = 8


def export(
    checkpoint: Annotated[str, typer.Argument(help="a folder, a hub id, or pkg:NAME")],
    onnx: Annotated[Path, typer.Option("--onnx", help="the file to write; models that write text get more beside it")],
    pooling: Annotated[
        bool | None,
        typer.Option(
            "--pooling/--no-pooling", help="sentence embeddings in the graph; default: as the checkpoint says"
        ),
    ] = None,
    cache: Annotated[
        bool,
        typer.Option("--cache/--no-cache", help="models that write text: files that go on from a cache, or one graph"),
    ] = True,
    profile: Annotated[
        str,
        typer.Option(
            "--profile",
            help="fast: for ONNX Runtime; static: fixed scales; portable: int8 weights, float products; "
            "auto: the fastest on this machine",
        ),
    ] = "fast",
    min_cosine: Annotated[
        float | None,
        typer.Option("--min-cosine", help="auto: what a file must keep of the weights with float products"),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="auto: rows of a call that is measured")] = 1,
    length: Annotated[
        int | None, typer.Option("--length", min=1, help="auto: tokens of a row; default: 128, or what the model takes")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="auto: threads that are measured with")] = 1,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="auto: for which each file is measured")] = 4.0,
    opset: Annotated[int | None, typer.Option("--opset", help="ONNX opset, 21 to 24; default: the profile's")] = None,
    revision: option.Revision = None,
    trust_remote_code: option.TrustRemoteCode = False,
    json: option.Json = False,
    quiet: option.Quiet = False,
) -> None:
    """Make the ONNX file of a checkpoint, run it beside the model, and write it only if both agree."""
    from compresskit.checkpoint.source import open_source
    from compresskit.export import export_onnx
    from compresskit.export.trace import check_profile
    from compresskit.pipeline.profiles import AUTO, Shape, export_best

    output = Output(json=json, quiet=quiet)
    candidates: list[Candidate] = []
    if profile != AUTO:
        check_profile(profile)
        _refuse_alone({"--min-cosine": min_cosine, "--length": length})
    with output.progress() as progress:
        source = open_source(checkpoint, revision=revision, trust_remote_code=trust_remote_code)
        model = source.load_model()
        about: dict[str, Any] = {
            "tokenizer": source.load_tokenizer(),
            "sentence_transformer": source.sentence_transformer,
            "pooling": pooling,
            "cache": cache,
            "opset": opset,
            "progress": progress,
        }
        if profile == AUTO:
            shape = Shape(batch=batch, length=length, threads=threads, seconds=seconds)
            report, candidates = export_best(model, onnx, min_cosine=min_cosine, shape=shape, **about)
        else:
            report = export_onnx(model, onnx, profile=profile, **about)  # type: ignore[arg-type]
    weights = source.disk_report["weights"]
    data: dict[str, Any] = {**report.to_dict(), "checkpoint_bytes": weights, "ratio": report.bytes / weights}
    if candidates:
        data["candidates"] = [candidate.to_dict() for candidate in candidates]
    output.result(data, _view(report, weights, candidates))


def _refuse_alone(given: dict[str, Any]) -> None:
    """Options of ``auto`` without it.

    Raises:
        UsageError: CK-X015.
    """
    from compresskit.errors import UsageError

    named = [name for name, value in given.items() if value is not None]
    if named:
        raise UsageError("CK-X015", f"{named[0]} belongs to --profile auto", fix="leave it out, or add --profile auto")


def _view(report: ExportReport, weights: int, candidates: list[Candidate]) -> RenderableType:
    from rich.console import Group

    from compresskit.report.numbers import megabytes

    rows = []
    for graph in report.graphs.values():
        counts = sorted(graph.audit.operators.items(), key=lambda pair: -pair[1])
        operators = ", ".join(f"{count} {name}" for name, count in counts[:_MOST_OPERATORS])
        rows += [
            (graph.file.name, f"{megabytes(graph.bytes)}, {graph.bytes / weights:.2f} of the checkpoint's weights"),
            ("  inputs", _shapes(graph.inputs)),
            ("  outputs", _shapes(graph.outputs)),
            ("  integer", f"{graph.audit.integer_layers} linear layers, {graph.audit.tables} tables"),
            ("  nodes", f"{operators}, …" if len(counts) > _MOST_OPERATORS else operators),
        ]
    agreement = (
        f"largest difference {report.max_difference:.1e}"
        if report.held_to == "float"
        else f"mean cosine {report.cosine_mean:.5f}, smallest {report.cosine_min:.5f}"
    )
    rows.append(("against the model", f"{agreement}, over {len(report.parity)} outputs in ONNX Runtime"))
    rows.append(("opset", f"{report.opset}, profile {report.profile}"))
    rows += [("note", warning) for warning in report.warnings]
    tables = [table(("", ""), rows)]
    if candidates:
        tables.insert(0, _choice(candidates))
    return Group(str(report.path.parent), *tables)


def _choice(candidates: list[Candidate]) -> RenderableType:
    from compresskit.report.numbers import megabytes

    rows = [
        (
            f"{'→' if each.kept else ' '} {each.profile}",
            "" if each.milliseconds is None else f"{each.milliseconds:.3f} ms",
            "" if each.ratio is None else f"{each.ratio:.2f}x",
            "" if each.bytes is None else megabytes(each.bytes),
            "" if each.cosine is None else f"{each.cosine:.5f}",
            each.why,
        )
        for each in candidates
    ]
    return table(("profile", "time", "", "size", "cosine", ""), rows)


def _shapes(values: dict[str, list[int | str]]) -> str:
    shown = [f"{name} [{', '.join(map(str, sizes))}]" for name, sizes in values.items()]
    return ", ".join(shown[:4]) + (f", and {len(shown) - 4} more" if len(shown) > 4 else "")
