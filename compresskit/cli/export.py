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
        str, typer.Option("--profile", help="fast: for ONNX Runtime; portable: int8 weights, float products")
    ] = "fast",
    opset: Annotated[int | None, typer.Option("--opset", help="ONNX opset, 21 to 24; default: the profile's")] = None,
    revision: option.Revision = None,
    trust_remote_code: option.TrustRemoteCode = False,
    json: option.Json = False,
    quiet: option.Quiet = False,
) -> None:
    """Make the ONNX file of a checkpoint, run it beside the model, and write it only if both agree."""
    from compresskit.checkpoint.source import open_source
    from compresskit.export import export_onnx

    output = Output(json=json, quiet=quiet)
    with output.progress() as progress:
        source = open_source(checkpoint, revision=revision, trust_remote_code=trust_remote_code)
        report = export_onnx(
            source.load_model(),
            onnx,
            tokenizer=source.load_tokenizer(),
            sentence_transformer=source.sentence_transformer,
            pooling=pooling,
            cache=cache,
            profile=profile,  # type: ignore[arg-type]
            opset=opset,
            progress=progress,
        )
    weights = source.disk_report["weights"]
    data: dict[str, Any] = {**report.to_dict(), "checkpoint_bytes": weights, "ratio": report.bytes / weights}
    output.result(data, _view(report, weights))


def _view(report: ExportReport, weights: int) -> RenderableType:
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
    return Group(str(report.path.parent), table(("", ""), rows))


def _shapes(values: dict[str, list[int | str]]) -> str:
    shown = [f"{name} [{', '.join(map(str, sizes))}]" for name, sizes in values.items()]
    return ", ".join(shown[:4]) + (f", and {len(shown) - 4} more" if len(shown) > 4 else "")
