"""``compresskit schema``: JSON Schemas, for editors and for other tools."""

from __future__ import annotations

import json as json_module
import sys
from typing import Annotated, Any

import typer

from compresskit.cli._output import to_json
from compresskit.errors import UsageError


def schema(
    name: Annotated[str, typer.Argument(help="what to describe: recipe or bench")] = "recipe",
    json: Annotated[bool, typer.Option("--json", help="in one line")] = False,
) -> None:
    """Print the JSON Schema of recipes, with every option of every method, or of benchmark records.

    In a recipe, the comment `# yaml-language-server: $schema=recipe.schema.json` makes editors complete and check it.
    """
    if name not in _SCHEMAS:
        raise UsageError("CK-U007", f"there is no schema {name!r}", fix=f"schemas: {', '.join(_SCHEMAS)}")
    content = _SCHEMAS[name]()
    sys.stdout.write((to_json(content) if json else json_module.dumps(content, indent=1)) + "\n")


def _recipe() -> dict[str, Any]:
    from compresskit.recipe.json_schema import json_schema

    return json_schema()


def _bench() -> dict[str, Any]:
    from compresskit.bench.record import json_schema

    return json_schema()


_SCHEMAS = {"recipe": _recipe, "bench": _bench}
