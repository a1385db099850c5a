"""States of optimizers, schedulers and random generators as safetensors and JSON, without pickle.

A state is a tree of dicts, lists, tuples, numbers, texts, None, tensors and arrays. Tensors go into one safetensors
file under numbered names; the JSON file holds the rest, with tagged objects in place of what JSON doesn't have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from compresskit.errors import ModelError

_TAG = "__kind__"


def write_state(state: Any, path: Path) -> None:
    """Write ``state`` as ``path``.json and ``path``.safetensors.

    Raises:
        ModelError: CK-L051, if it holds something else than plain data, tensors and arrays.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, tensors, path.name)
    save_file(tensors, path.with_name(path.name + ".safetensors"))
    path.with_name(path.name + ".json").write_text(json.dumps(tree), encoding="utf-8")


def read_state(path: Path) -> Any:
    """What ``write_state`` wrote.

    Raises:
        ModelError: CK-L050, if a file is missing or damaged.
    """
    try:
        tensors = load_file(path.with_name(path.name + ".safetensors"))
        tree = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
        return _decode(tree, tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError("CK-L050", "a training checkpoint is damaged", where=str(path), why=str(error)) from error


def _encode(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return {_TAG: "tensor", "name": _store(value.detach().cpu(), tensors)}
    if isinstance(value, np.ndarray):
        # safetensors' torch side knows few unsigned types; 64 bits hold them all.
        wide = value.astype(np.int64) if value.dtype.kind == "u" else value
        return {_TAG: "array", "name": _store(torch.from_numpy(wide.copy()), tensors), "dtype": value.dtype.name}
    if isinstance(value, np.generic):
        return _encode(value.item(), tensors, where)
    if isinstance(value, list):
        return [_encode(item, tensors, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, tuple):
        items = [_encode(item, tensors, f"{where}[{index}]") for index, item in enumerate(value)]
        return {_TAG: "tuple", "items": items}
    if isinstance(value, dict):
        pairs = [[_key(key, where), _encode(item, tensors, f"{where}.{key}")] for key, item in value.items()]
        return {_TAG: "dict", "items": pairs}
    raise ModelError(
        "CK-L051",
        f"a {type(value).__name__} can't be stored in a training checkpoint",
        where=where,
        why="checkpoints hold plain data and tensors only, so that reading one never runs code",
        fix="use an optimizer and a scheduler of torch or transformers",
    )


def _key(key: Any, where: str) -> Any:
    if isinstance(key, str | int) and not isinstance(key, bool):
        return key
    raise ModelError("CK-L051", f"a key of type {type(key).__name__} can't be stored", where=where)


def _store(tensor: Tensor, tensors: dict[str, Tensor]) -> str:
    name = f"t{len(tensors)}"
    tensors[name] = tensor.contiguous().clone()
    return name


def _decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kind = tree[_TAG]
    if kind == "tensor":
        return tensors[tree["name"]]
    if kind == "array":
        return tensors[tree["name"]].numpy().astype(np.dtype(tree["dtype"]))
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in tree["items"])
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in tree["items"]}
    raise ValueError(f"unknown kind {kind!r:.40}")
