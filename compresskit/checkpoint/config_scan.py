"""What a config may not say: checked before transformers reads it.

Some keys of ``config.json`` make transformers fetch and run code, two of them in published holes with
``trust_remote_code=False`` (CVE-2026-4372, CVE-2026-5241). Others only waste memory: a million layers.
"""

from __future__ import annotations

import re
from typing import Any

from compresskit.checkpoint.files import printable
from compresskit.checkpoint.strict_json import walk
from compresskit.errors import ModelError, SecurityError

# Run code that comes with the model; allowed with --trust-remote-code.
_CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "custom_generate"})
# Lead transformers to other files or repositories; never allowed.
_REDIRECTING_KEYS = frozenset({"configuration_files", "use_kernels", "kernel_config"})
_INTERNAL = "_internal"
_IMPLEMENTATION = "_implementation"

MOST_LAYERS = 2048
MOST_HEADS = 16_384
MOST_WIDTH = 2**22
MOST_ROWS = 2**24

_LIMITS = {
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers",
         "decoder_layers", "num_hidden_groups", "inner_group_num"),
        MOST_LAYERS,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
         "decoder_attention_heads", "num_local_experts", "num_experts", "n_routed_experts"),
        MOST_HEADS,
    ),
    **dict.fromkeys(
        ("hidden_size", "intermediate_size", "embedding_size", "n_embd", "n_inner", "dim", "hidden_dim", "head_dim",
         "d_model", "d_kv", "d_ff", "d_inner", "moe_intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim"),
        MOST_WIDTH,
    ),
    **dict.fromkeys(
        ("vocab_size", "type_vocab_size", "max_position_embeddings", "n_positions", "n_ctx", "num_labels"), MOST_ROWS
    ),
}  # fmt: skip

_RESTORE = "restore config.json from where the model came from"
_CLASS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_MODEL_TYPE = re.compile(r"[A-Za-z0-9_.\-]{1,128}")


def refuse_code(content: Any, where: str, *, trusted: bool) -> None:
    """Refuse keys that make transformers run code or look elsewhere, at any depth.

    Args:
        trusted: the user allowed code that comes with the model.

    Raises:
        SecurityError: CK-S004.
    """
    for place, key, value in walk(content):
        why = _danger(key, value, trusted)
        if why:
            raise SecurityError(
                "CK-S004",
                f"{printable(key, 60)!r} is not accepted in a model's configuration",
                where=f"{where}: {printable(place, 120)}",
                why=why,
                fix=(
                    "if transformers knows this model type itself, delete the key; otherwise read the code, then allow"
                    " it by --trust-remote-code with the --revision (40 hexadecimal digits) that you read"
                    if key in _CODE_KEYS
                    else "delete the key; no option allows it"
                ),
            )


def _danger(key: str, value: Any, trusted: bool) -> str:
    if key in _CODE_KEYS and value and not trusted:
        return "it names Python code that would be run"
    if key in _REDIRECTING_KEYS and value:
        return "it leads to files or kernels outside this configuration"
    if key.endswith(_INTERNAL):
        return "keys ending in _internal have made transformers fetch and run code"
    if key == "trust_remote_code" and value:
        return "only the command line can allow code, never a file of the model"
    if key.endswith(_IMPLEMENTATION) and isinstance(value, str) and ("/" in value or ":" in value):
        return "it names kernels of a repository, which would be fetched and run"
    return ""


def check_config(config: Any, where: str) -> dict[str, Any]:
    """``config`` if it is one of a model and none of its sizes is absurd.

    Raises:
        ModelError: CK-M006, no object, or without a model type; CK-M007, a size out of bounds; CK-M008, compressed by
            other software.
    """
    if not isinstance(config, dict):
        raise ModelError("CK-M006", "config.json is no JSON object", where=where, fix=_RESTORE)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not _MODEL_TYPE.fullmatch(model_type):
        raise ModelError(
            "CK-M006",
            "config.json names no model type",
            where=where,
            fix=_RESTORE,
        )
    _check_classes(config.get("architectures"), where)
    for place, key, value in walk({name: part for name, part in config.items() if name != "quantization_config"}):
        if key in _LIMITS and not isinstance(value, list | dict) and value is not None:
            _check_size(place, value, _LIMITS[key], where)
    _refuse_foreign(config, where)
    return config


def _check_classes(names: Any, where: str) -> None:
    if names is None:
        return
    good = isinstance(names, list) and all(isinstance(name, str) and _CLASS_NAME.fullmatch(name) for name in names)
    if not good:
        raise ModelError(
            "CK-M006", "`architectures` of config.json is no list of class names", where=where, fix=_RESTORE
        )


def _check_size(place: str, value: Any, limit: int, where: str) -> None:
    if type(value) is not int or not 0 <= value <= limit:
        raise ModelError(
            "CK-M007",
            f"{printable(place, 80)} is {printable(repr(value), 40)}",
            where=where,
            why=f"it must be a whole number from 0 to {limit}",
            fix=_RESTORE,
        )


def _refuse_foreign(config: dict[str, Any], where: str) -> None:
    """Refuse models that other software compressed: their tensors aren't the weights that the config speaks of."""
    settings = config.get("quantization_config") or config.get("compression_config")
    if not settings:
        return
    method = settings.get("quant_method", settings.get("format")) if isinstance(settings, dict) else None
    if method != "compresskit":
        raise ModelError(
            "CK-M008",
            f"the model is already quantized ({printable(method or 'by unnamed software', 60)})",
            where=where,
            why="its tensors are codes, not weights; compressing them again would give garbage",
            fix="start from the model before it was quantized",
        )


def check_tokenizer_pattern(content: Any, where: str) -> None:
    """Refuse regular expressions of a tokenizer whose matching time can explode.

    The test is a sufficient one: a group with an unbounded repeat inside is itself repeated without bound, such as
    ``(a+)+``. Patterns of published tokenizers don't do that.

    Raises:
        SecurityError: CK-S006.
    """
    for place, key, value in walk(content):
        if key == "Regex" and isinstance(value, str) and (len(value) > 8192 or _nested_repeat(value)):
            raise SecurityError(
                "CK-S006",
                "a regular expression of the tokenizer could take forever",
                where=f"{where}: {printable(place, 120)}",
                why=f"a repeat within a repeat: {printable(value, 60)}",
                fix="use the tokenizer of the model's original publisher",
            )


_TOKEN = re.compile(r"\\.|\[(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]|\(|\)|[*+]|\{\d*,\}", re.DOTALL)


def _nested_repeat(pattern: str) -> bool:
    """Whether a group that contains an unbounded repeat is followed by one."""
    open_groups = [False]
    closed: bool | None = None  # did the group that has just been closed contain a repeat?
    position = 0
    for found in _TOKEN.finditer(pattern):
        token, adjacent = found.group(), found.start() == position
        position = found.end()
        if token == "(":
            open_groups.append(False)
            closed = None
        elif token == ")":
            inner = open_groups.pop() if len(open_groups) > 1 else False
            open_groups[-1] |= inner
            closed = inner
        elif token[0] in "*+{":
            if closed and adjacent:
                return True
            open_groups[-1] = True
            closed = None
        else:
            closed = None
    return False
