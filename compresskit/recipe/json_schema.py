"""The JSON Schema of recipes, built from the registry: editors complete and check every option of every method."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from compresskit import registry
from compresskit.recipe.gates import BOUND_PATTERN, NAME_PATTERN
from compresskit.recipe.schema import SECTIONS, VERSION

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema that a recipe's YAML or JSON must satisfy."""
    methods = registry.methods()
    definitions: dict[str, Any] = {}
    for name, cls in methods.items():
        definitions[name] = _model_schema(cls, definitions)
    trainers = sorted(name for name, cls in methods.items() if "training" in cls.needs)
    definitions["recovery"] = _one_method(trainers)
    for name in methods:
        definitions[f"{name}+recovery"] = _with_recovery(definitions[name])
    definitions["step"] = _one_method(list(methods), suffix="+recovery")
    sections = {name: _model_schema(cls, definitions) for name, cls in SECTIONS.items()}
    return {
        "$schema": _DIALECT,
        "title": "compresskit recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["steps"],
        "properties": {
            "version": {"const": VERSION},
            "model": {"type": "string", "minLength": 1, "description": "folder, hub id or pkg:NAME; --model wins"},
            "teacher": {"type": "string", "minLength": 1, "description": "default: the model as it came in"},
            **sections,
            "gates": {
                "type": "object",
                "propertyNames": {"pattern": f"^{NAME_PATTERN.pattern}$"},
                "additionalProperties": {"type": "string", "pattern": f"^{BOUND_PATTERN.pattern}$"},
            },
            "steps": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/step"}},
        },
        "$defs": definitions,
    }


def _model_schema(cls: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one model; its own definitions move to ``definitions`` under names that can't clash."""
    schema = cls.model_json_schema(ref_template=f"#/$defs/{cls.__name__}.{{model}}")
    for name, inner in schema.pop("$defs", {}).items():
        definitions[f"{cls.__name__}.{name}"] = inner
    return schema


def _with_recovery(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "properties": {**schema.get("properties", {}), "recover": {"$ref": "#/$defs/recovery"}}}


def _one_method(names: list[str], suffix: str = "") -> dict[str, Any]:
    """Either a bare name, or a mapping of one name to its options (or to nothing: the defaults)."""
    mappings = [
        {
            "type": "object",
            "additionalProperties": False,
            "required": [name],
            "properties": {name: {"anyOf": [{"$ref": f"#/$defs/{name}{suffix}"}, {"type": "null"}]}},
        }
        for name in names
    ]
    return {"oneOf": [{"enum": names}, *mappings]}
