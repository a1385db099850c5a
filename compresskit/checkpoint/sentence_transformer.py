"""What the files of a sentence-transformers model say: how token vectors become the vector of a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compresskit.checkpoint.files import check_relative, printable
from compresskit.errors import ModelError, SecurityError

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
_PACKAGE = "sentence_transformers."
_CLASS = re.compile(r"[A-Za-z_][\w.]{0,200}")
_LENGTHS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
    "sentence_camembert_config.json",
)
# Keys of 1_Pooling/config.json before sentence-transformers 5, and the modes as they are named since.
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

Reader = Callable[[str], Any]
"""Gives the JSON value of a file of the model by its relative name, or None where there is no such file."""


@dataclass(frozen=True)
class SentenceTransformerFiles:
    """How a sentence-transformers model pools.

    Args:
        pooling: ``mean``, ``cls``, ``max``, ``lasttoken``, ``weightedmean`` or ``mean_sqrt_len_tokens``; several,
            whose vectors are joined end to end, with ``+`` between them.
        normalize: whether the vector is divided by its length at the end.
        max_seq_length: texts are cut to this many tokens, or None.
        dimension: size of the token vectors, or None where the files don't say.
        modules: class names in order, such as Transformer, Pooling, Normalize.
        folders: folders of modules other than the model itself.
    """

    pooling: str
    normalize: bool
    max_seq_length: int | None
    dimension: int | None
    modules: tuple[str, ...]
    folders: tuple[str, ...]


def describe(read: Reader, where: str, *, trusted: bool = False) -> SentenceTransformerFiles | None:
    """Read ``modules.json`` and what it names; None where there is none.

    Raises:
        ModelError: CK-M021, malformed.
        SecurityError: CK-S003 a path that leaves the folder, CK-S004 a class that isn't of sentence-transformers.
    """
    listed = read(MODULES)
    if listed is None:
        return None
    if not isinstance(listed, list) or not listed or len(listed) > 32:
        raise _malformed(where, f"{MODULES} is no list of modules")
    names, folders, pooling, dimension = [], [], "", None
    for entry in listed:
        kind, path = _entry(entry, where, trusted)
        names.append(kind)
        if path:
            folders.append(path)
        if kind == "Pooling":
            pooling, dimension = _pooling(read(f"{path}/config.json" if path else "config.json"), where)
    if names[0] == "Transformer" and _path(listed[0]):
        raise _malformed(where, f"the model itself lies in {listed[0]['path']!r}", "give that folder as the model")
    return SentenceTransformerFiles(
        pooling, "Normalize" in names, _length(read, where), dimension, tuple(names), tuple(dict.fromkeys(folders))
    )


def _path(entry: Any) -> str:
    path = entry.get("path", "")
    return "" if path in ("", ".", None) else path.rstrip("/") if isinstance(path, str) else path


def _entry(entry: Any, where: str, trusted: bool) -> tuple[str, str]:
    kind = entry.get("type") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or not _CLASS.fullmatch(kind):
        raise _malformed(where, f"an entry of {MODULES} names no class")
    if not kind.startswith(_PACKAGE) and not trusted:
        raise SecurityError(
            "CK-S004",
            f"{MODULES} names the class {printable(kind, 80)!r}, which is not of sentence-transformers",
            where=where,
            why="it would be imported and run",
            fix="read its code, then allow it by --trust-remote-code with the --revision that you read",
        )
    path = _path(entry)
    return kind.rpartition(".")[2], check_relative(path, where) if path else ""


def _pooling(config: Any, where: str) -> tuple[str, int | None]:
    if not isinstance(config, dict):
        raise _malformed(where, "the pooling module has no config.json")
    named = config.get("pooling_mode")
    if named is not None:
        modes = [named] if isinstance(named, str) else named
    else:
        modes = [mode for key, mode in _MODES.items() if config.get(key) is True]
    if not isinstance(modes, list) or not modes or any(mode not in _MODES.values() for mode in modes):
        raise _malformed(where, f"unknown pooling {printable(modes, 60)}")
    dimension = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    if dimension is not None and (type(dimension) is not int or not 0 < dimension < 2**22):
        raise _malformed(where, f"the dimension is {printable(repr(dimension), 40)}")
    return "+".join(modes), dimension


def _length(read: Reader, where: str) -> int | None:
    for name in _LENGTHS:
        config = read(name)
        if config is None:
            continue
        length = config.get("max_seq_length") if isinstance(config, dict) else None
        if length is not None and (type(length) is not int or not 0 < length < 2**24):
            raise _malformed(where, f"max_seq_length is {printable(repr(length), 40)}")
        return length
    return None


def _malformed(where: str, why: str, fix: str = "restore the files from where the model came from") -> ModelError:
    what = "the files of the sentence-transformers model can't be used"
    return ModelError("CK-M021", what, where=where, why=why, fix=fix)


def file_names() -> tuple[str, ...]:
    """Files at the top of a model's folder that belong to sentence-transformers."""
    return (MODULES, SETTINGS, *_LENGTHS)
