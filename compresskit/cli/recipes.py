"""``compresskit recipes``: those that come along."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output, table
from compresskit.errors import ResourceError, UsageError

recipes = typer.Typer(help="List, show and copy the recipes that come along.", no_args_is_help=True)

_SCHEMA_LINE = "# yaml-language-server: $schema=recipe.schema.json\n"


@recipes.command("list")
def list_recipes(json: option.Json = False) -> None:
    """List the recipes that come along; `apply` takes them by name."""
    from compresskit.recipe.library import shipped

    found = [{"name": item.name, "summary": item.summary, "path": str(item.path)} for item in shipped().values()]
    Output(json=json).result(
        {"recipes": found}, table(("recipe", ""), ((item["name"], item["summary"]) for item in found))
    )


@recipes.command()
def show(
    name: Annotated[str, typer.Argument(help="the name of a recipe that comes along")],
    json: option.Json = False,
) -> None:
    """Print a recipe; with --json as resolved, every option written out."""
    from compresskit.recipe.library import find

    path = find(name)
    if not json:
        Output().result({}, path.read_text(encoding="utf-8").rstrip("\n"))
        return
    from compresskit.recipe import Recipe

    Output(json=True).result({"name": name, "path": str(path), "recipe": Recipe.load(path).to_dict()}, "")


@recipes.command()
def new(
    file: Annotated[Path, typer.Argument(help="the file to write")],
    origin: Annotated[str, typer.Option("--from", help="the recipe to start from")] = "demo",
    json: option.Json = False,
) -> None:
    """Write a recipe to start from; an existing file is never overwritten."""
    from compresskit.recipe.library import find

    text = find(origin).read_text(encoding="utf-8")
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(_SCHEMA_LINE + text)
    except FileExistsError:
        raise UsageError("CK-U008", "the file exists", where=str(file), fix="choose another name") from None
    except OSError as error:
        raise ResourceError("CK-U009", error.strerror or "can't be written", where=str(file)) from error
    hint = "compresskit schema recipe > recipe.schema.json   makes editors complete and check it"
    Output(json=json).result({"path": str(file), "from": origin}, f"written to {file}\n{hint}")
