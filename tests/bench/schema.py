"""A checker for the part of JSON Schema that our schema uses; anything else in it is an error here."""

from __future__ import annotations

from typing import Any

_KNOWN = {
    "$defs", "$ref", "$schema", "additionalProperties", "anyOf", "const", "default", "description", "enum", "items",
    "maxItems", "minItems", "prefixItems", "properties", "required", "title", "type",
}  # fmt: skip
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


def violations(value: Any, schema: dict[str, Any]) -> list[str]:
    """What of ``value`` doesn't fit ``schema``, by place."""
    return list(_check(value, schema, schema, ""))


def _check(value: Any, schema: dict[str, Any], root: dict[str, Any], place: str) -> list[str]:
    unknown = set(schema) - _KNOWN
    assert not unknown, f"the schema uses {unknown}"
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        return _check(value, root["$defs"][name], root, place)
    if "anyOf" in schema:
        found = [_check(value, choice, root, place) for choice in schema["anyOf"]]
        return [] if any(not items for items in found) else min(found, key=len)
    wrong = []
    kind = schema.get("type")
    if kind and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind in ("integer", "number"))):
        return [f"{place}: {value!r:.60} is no {kind}"]
    if "enum" in schema and value not in schema["enum"]:
        wrong.append(f"{place}: {value!r:.60} is none of {schema['enum']}")
    if isinstance(value, dict):
        wrong += [f"{place}: {name} is missing" for name in schema.get("required", []) if name not in value]
        for name, item in value.items():
            inner = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if isinstance(inner, dict):
                wrong += _check(item, inner, root, f"{place}.{name}")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            wrong.append(f"{place}: {len(value)} items")
        first = schema.get("prefixItems", [])
        for number, item in enumerate(value):
            inner = first[number] if number < len(first) else schema.get("items")
            if isinstance(inner, dict):
                wrong += _check(item, inner, root, f"{place}[{number}]")
    return wrong
