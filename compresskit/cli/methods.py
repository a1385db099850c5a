"""``compresskit methods``: what the registry holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from compresskit.cli import _options as option
from compresskit.cli._output import Output, table

if TYPE_CHECKING:
    from compresskit.core.compressor import Compressor


def methods(
    name: Annotated[str | None, typer.Argument(help="one method, as family.name: shows its options")] = None,
    plugin: option.Plugins = None,
    json: option.Json = False,
) -> None:
    """List the methods; with a name, the options of one."""
    from compresskit import registry

    registry.load_plugins(plugin or [])
    out = Output(json=json)
    if name is not None:
        found = describe(registry.method(name))
        out.result(found, _one(found))
        return
    rows = [describe(cls) for cls in registry.methods().values()]
    plugins = [{"name": point.name, "module": point.value} for point in registry.plugins()]
    cells = (
        (row["method"], *(", ".join(row[key]) for key in ("sites", "needs", "shrinks")), row["summary"]) for row in rows
    )
    out.result({"methods": rows, "plugins": plugins}, table(("method", "sites", "needs", "shrinks", ""), cells))
    for point in plugins:
        out.note(f"plug-in {point['name']} ({point['module']}): not imported; enable it with --plugin {point['name']}")


def describe(cls: type[Compressor]) -> dict[str, Any]:
    """A method as data: what it is, and its options with type, default and description."""
    properties = cls.model_json_schema()["properties"]
    options = [
        {
            "name": key,
            "type": _type(properties[key]),
            "default": properties[key].get("default"),
            "description": field.description or "",
        }
        for key, field in cls.model_fields.items()
    ]
    return {
        "method": cls.full_name(),
        "family": cls.family,
        "name": cls.name,
        "summary": (cls.__doc__ or "").strip().partition("\n")[0],
        "sites": sorted(cls.sites),
        "needs": sorted(cls.needs),
        "shrinks": sorted(cls.shrinks),
        "walk": cls.walk,
        "paper": cls.paper,
        "options": options,
    }


def _type(schema: dict[str, Any]) -> str:
    """A JSON Schema in a few words: ``number``, ``list of integer``, ``'min' or 'max'``."""
    if "anyOf" in schema:
        return " or ".join(_type(item) for item in schema["anyOf"] if item.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return " or ".join(repr(value) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _one(found: dict[str, Any]) -> Any:
    from rich.console import Group

    facts = ", ".join(f"{key}: {' '.join(found[key]) or 'nothing'}" for key in ("sites", "needs", "shrinks"))
    rows = [
        (item["name"], item["type"], "" if item["default"] in (None, []) else str(item["default"]), item["description"])
        for item in found["options"]
    ]
    lines = [f"{found['method']}: {found['summary']}", facts]
    lines += [f"source: {found['paper']}"] if found["paper"] else []
    return Group(*lines, "", table(("option", "type", "default", ""), rows))
