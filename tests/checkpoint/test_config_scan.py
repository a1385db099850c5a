"""Any JSON as a config, manifest or index is read, or refused by a typed error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compresskit.checkpoint import contents, manifest
from compresskit.checkpoint.config_scan import check_config, check_tokenizer_pattern, refuse_code
from compresskit.checkpoint.strict_json import parse
from tests.checkpoint.test_safetensors_header import JSON, typed_error

KEYS = st.sampled_from(
    ["model_type", "architectures", "hidden_size", "num_hidden_layers", "auto_map", "x_internal", "trust_remote_code",
     "quantization_config", "attn_implementation", "Regex", "text_config"]
)  # fmt: skip
CONFIG = st.dictionaries(KEYS | st.text(max_size=6), JSON | st.just("bert") | st.just(["BertModel"]), max_size=5)
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(CONFIG | JSON)
def test_configs(content: Any) -> None:
    def scan() -> None:
        value = parse(json.dumps(content).encode(), "config.json")
        refuse_code(value, "config.json", trusted=False)
        check_tokenizer_pattern(value, "tokenizer.json")
        assert isinstance(check_config(value, "config.json")["model_type"], str)

    error = typed_error(scan)
    assert error is None or error.fix


@fuzz
@given(st.binary(max_size=60))
def test_bytes(content: bytes) -> None:
    error = typed_error(lambda: parse(content, "x.json"))
    assert error is None or error.code == "CK-M006"


ENTRY = st.fixed_dictionaries(
    {"path": st.text(max_size=8) | JSON, "size": st.integers(-1, 5) | JSON, "sha256": st.just("0" * 64) | JSON}
)
MANIFEST = st.fixed_dictionaries(
    {"format_version": st.just(1) | JSON, "tools": st.just({}) | JSON, "files": st.lists(ENTRY, max_size=3) | JSON}
)


@fuzz
@given(content=MANIFEST | JSON)
def test_manifests(tmp_path: Path, content: Any) -> None:
    (tmp_path / manifest.NAME).write_text(json.dumps(content))

    def read() -> None:
        paths = [entry.path for entry in manifest.read(tmp_path).files]
        assert not any(path.startswith("/") or ".." in path.split("/") for path in paths)

    error = typed_error(read)
    assert error is None or error.exit_code in (3, 6)


INDEX = st.fixed_dictionaries({"weight_map": st.dictionaries(st.text(max_size=5), st.text(max_size=8)) | JSON})


@fuzz
@given(index=INDEX | JSON)
def test_indexes(tmp_path: Path, index: Any) -> None:
    error = typed_error(lambda: contents.read_weights(tmp_path, lambda _: index))
    assert error is not None
    assert error.code in ("CK-M005", "CK-S003")
