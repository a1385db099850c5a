"""``compresskit plan``: what a recipe would do, before any weight is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output


def plan(
    recipe: Annotated[str, typer.Argument(help="a recipe file, or the name of a shipped one")],
    model: option.Model = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="save the plan (.ckplan) for `apply`")] = None,
    dtype: option.Dtype = None,
    revision: option.Revision = None,
    plugin: option.Plugins = None,
    trust_remote_code: option.TrustRemoteCode = False,
    strict: option.Strict = False,
    low_memory: option.LowMemory = False,
    json: option.Json = False,
) -> None:
    """Show what a recipe would do to a model: sites, sizes, warnings."""
    from compresskit import pipeline, registry
    from compresskit.cli._view import plan_view

    registry.load_plugins(plugin or [])
    options = pipeline.Options(
        strict=strict, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code, low_memory=low_memory
    )
    made = pipeline.plan(model, recipe, options=options)
    if output is not None:
        pipeline.save_plan(made, output)
    Output(json=json).result(made.to_dict(), plan_view(made.to_dict()))
