"""The JSON Schema: complete, self-contained, and of one mind with the reader."""

from __future__ import annotations

import json
import re

from compresskit import registry
from compresskit.recipe.json_schema import json_schema
from compresskit.recipe.schema import KEYS


def test_every_method_and_key_is_there() -> None:
    found = json_schema()
    assert set(found["properties"]) == set(KEYS)
    for name, cls in registry.methods().items():
        options = found["$defs"][f"{name}+recovery"]
        assert set(options["properties"]) == {*cls.model_fields, "recover"}
        assert options["additionalProperties"] is False
    assert len(found["$defs"]["step"]["oneOf"]) == 1 + len(registry.methods())
    assert found["$defs"]["recovery"]["oneOf"][0]["enum"].count("distillation.toy") == 1
    assert "pruning.toy" not in found["$defs"]["recovery"]["oneOf"][0]["enum"]


def test_references_resolve_and_it_is_json() -> None:
    found = json_schema()
    text = json.dumps(found)
    names = set(re.findall(r'"#/\$defs/([^"]+)"', text))
    assert names
    assert names <= set(found["$defs"])
    assert "Ellipsis" not in text
