"""``compresskit apply``: run a recipe on a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output
from compresskit.errors import UsageError


def apply(
    recipe: Annotated[str, typer.Argument(help="a recipe file, the name of a shipped one, or a saved plan (.ckplan)")],
    model: option.Model = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="the folder to make")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing output, all or nothing")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on after the last finished step")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="largest loss of quality, in points of 100; else exit 1")
    ] = None,
    device: option.Device = "cpu",
    dtype: option.Dtype = None,
    threads: option.Threads = None,
    seed: option.Seed = 0,
    revision: option.Revision = None,
    plugin: option.Plugins = None,
    trust_remote_code: option.TrustRemoteCode = False,
    strict: option.Strict = False,
    low_memory: option.LowMemory = False,
    quiet: option.Quiet = False,
    json: option.Json = False,
) -> None:
    """Run a recipe on a checkpoint: save, reopen in a fresh process, and print what was measured.

    Under torchrun several processes train together, and the first one writes and prints.
    """
    from compresskit import pipeline, registry
    from compresskit.cli._view import plan_view, result_view
    from compresskit.core import processes

    registry.load_plugins(plugin or [])
    processes.start(device)
    out = Output(json=json, quiet=quiet or not processes.is_first())
    options = pipeline.Options(
        overwrite=overwrite,
        resume=resume,
        strict=strict,
        max_drop=max_drop,
        device=device,
        dtype=dtype,
        threads=threads,
        seed=seed,
        revision=revision,
        trust_remote_code=trust_remote_code,
        low_memory=low_memory,
    )
    if recipe.endswith(".ckplan"):
        saved = pipeline.load_plan(Path(recipe))
        content: Any = saved.recipe
        model = model or saved.model
    else:
        saved, content = None, recipe
    if dry_run:
        made = pipeline.plan(model, content, options=options)
        if processes.is_first():
            out.result(made.to_dict(), plan_view(made.to_dict()))
        return
    if output is None:
        raise UsageError("CK-U015", "no output folder given", fix="add --output DIR, or --dry-run to see the plan")
    with out.progress() as progress:
        listener = pipeline.Listener(
            plan=lambda made: out.note(plan_view(made.to_dict())),
            progress=progress,
        )
        result = pipeline.apply(model, content, output, options=options, listener=listener, expected=saved)
    if processes.is_first():
        out.result(result.to_dict(), result_view(result.to_dict()))
    processes.stop()
