"""``compresskit schema``: JSON Schemas, for editors and for other tools."""

from __future__ import annotations

import json as json_module
import sys
from typing import Annotated

import typer

from compresskit.cli._output import to_json
from compresskit.errors import UsageError

_NAMES = ("recipe",)


def schema(
    name: Annotated[str, typer.Argument(help="what to describe: recipe")] = "recipe",
    json: Annotated[bool, typer.Option("--json", help="in one line")] = False,
) -> None:
    """Print the JSON Schema of recipes, with every option of every method.

    In a recipe, the comment `# yaml-language-server: $schema=recipe.schema.json` makes editors complete and check it.
    """
    if name not in _NAMES:
        raise UsageError("CK-U007", f"there is no schema {name!r}", fix=f"schemas: {', '.join(_NAMES)}")
    from compresskit.recipe.json_schema import json_schema

    content = json_schema()
    sys.stdout.write((to_json(content) if json else json_module.dumps(content, indent=1)) + "\n")
