"""The operations of a layout: what each may say, and how it is carried out on an empty model.

A layout comes from ``config.json``, which anybody may have written. Every operation is checked before it touches the
model: classes are looked up in fixed tables, attributes must exist and hold plain values, nothing is imported or called
by a name from the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compresskit import registry
from compresskit.checkpoint.addresses import is_address, path_of
from compresskit.errors import ModelError
from compresskit.nn.base import CompressedLayer

Operation = dict[str, Any]

PARAMETER = "Parameter"
MAX_OPERATIONS = 100_000


class StockClass(NamedTuple):
    """A module class that a layout may build: its arguments, read off a live module."""

    build: type[nn.Module]
    arguments: Callable[[Any], dict[str, Any]]


STOCK: dict[str, StockClass] = {
    "Linear": StockClass(
        nn.Linear,
        lambda m: {"in_features": m.weight.shape[1], "out_features": m.weight.shape[0], "bias": m.bias is not None},
    ),
    "Conv1D": StockClass(Conv1D, lambda m: {"nf": m.weight.shape[1], "nx": m.weight.shape[0]}),
    "Embedding": StockClass(
        nn.Embedding,
        lambda m: {
            "num_embeddings": m.weight.shape[0],
            "embedding_dim": m.weight.shape[1],
            "padding_idx": m.padding_idx,
        },
    ),
    "LayerNorm": StockClass(
        nn.LayerNorm,
        lambda m: {
            "normalized_shape": list(m.normalized_shape),
            "eps": m.eps,
            "elementwise_affine": m.weight is not None,
            "bias": m.bias is not None,
        },
    ),
    "RMSNorm": StockClass(
        nn.RMSNorm,
        lambda m: {
            "normalized_shape": list(m.normalized_shape),
            "eps": m.eps,
            "elementwise_affine": m.weight is not None,
        },
    ),
    "Identity": StockClass(nn.Identity, lambda m: {}),
}

_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "replace": {"path": str, "kind": str, "arguments": dict},
    "resize": {"path": str, "class": str, "arguments": dict},
    "attrs": {"path": str, "values": dict},
    "drop": {"path": str},
    "tie": {"source": str, "target": str},
    "untie": {"target": str},
    "attention": {"path": str, "settings": dict},
    "kv_cache": {"path": str, "settings": dict},
}
_OPTIONAL = {"replace": {"new"}, "resize": {"new"}}


def stock_class(module: nn.Module) -> str | None:
    """The name under which a layout builds modules of exactly this class, or None."""
    name = type(module).__name__
    return name if name in STOCK and STOCK[name].build is type(module) else None


def plain(value: Any) -> Any:
    """``value`` as JSON gives it back: tuples become lists. Raises TypeError or ValueError for what JSON can't hold."""
    return json.loads(json.dumps(value, allow_nan=False))


def is_setting(value: Any) -> bool:
    """Whether ``value`` is a scalar, or a list of scalars, that an ``attrs`` operation can carry."""
    if isinstance(value, list | tuple):
        return all(_is_scalar(item) for item in value)
    return _is_scalar(value)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def check(layout: Any) -> list[Operation]:
    """``layout`` itself, if every operation is well formed.

    Raises:
        ModelError: CK-L002, with the number of the operation.
    """
    if not isinstance(layout, list) or len(layout) > MAX_OPERATIONS:
        raise _malformed("the layout is no list of operations", "")
    for number, operation in enumerate(layout):
        reason = _flaw(operation)
        if reason:
            raise _malformed(reason, f"layout[{number}]")
    return layout


def _flaw(operation: Any) -> str:
    if not isinstance(operation, dict) or not isinstance(operation.get("op"), str):
        return "an operation is an object with the key 'op'"
    name = operation["op"]
    if name not in _FIELDS:
        return f"there is no operation {name!r}"
    wanted, given = _FIELDS[name], set(operation) - {"op"}
    if not set(wanted) <= given or given - set(wanted) - _OPTIONAL.get(name, set()):
        return f"{name!r} takes the keys {', '.join(wanted)}, not {', '.join(sorted(given))}"
    for key, kind in wanted.items():
        if not isinstance(operation[key], kind):
            return f"{key!r} of {name!r} has the wrong type"
    for key in ("path", "source", "target"):
        if key in operation and not is_address(operation[key]):
            return f"{operation[key]!r:.80} is no module path"
    return ""


def _malformed(what: str, where: str) -> ModelError:
    return ModelError(
        "CK-L002",
        what,
        where=where,
        why="quantization_config.layout in config.json was damaged or edited",
        fix="restore config.json from the checkpoint's origin",
    )


def carry_out(model: PreTrainedModel, operation: Operation) -> bool:
    """Change ``model`` as ``operation`` says; False where this class lacks the part that it names.

    Raises:
        ModelError: CK-L004, if the part is there and the operation doesn't fit it; CK-L003, an unknown layer kind.
    """
    return _CARRY_OUT[operation["op"]](model, operation)


def _misfit(operation: Operation, why: str) -> ModelError:
    return ModelError(
        "CK-L004",
        f"the layout's operation {operation['op']!r} doesn't fit this model",
        where=str(operation.get("path", operation.get("target", ""))),
        why=why,
        fix="load it with the classes of the model it was saved from; is config.json of the same checkpoint?",
    )


def _owner(model: PreTrainedModel, operation: Operation, key: str = "path") -> tuple[nn.Module, str] | None:
    """The module that holds what ``operation`` names, and its name there; None where the class lacks that part."""
    address = operation[key]
    head = address.rpartition(".")[0] or ("/" if address.startswith("/") else "")
    if operation.get("new"):
        parent = path_of(model, head)
        path = None if parent is None else f"{parent}.{address.lstrip('/').rpartition('.')[2]}".lstrip(".")
    else:
        path = path_of(model, address)
    if path is None:
        return None
    owner_path, _, name = path.rpartition(".")
    try:
        return (model.get_submodule(owner_path) if owner_path else model), name
    except AttributeError:
        raise _misfit(operation, f"{type(model).__name__} has no module {owner_path}") from None


def _module(model: PreTrainedModel, operation: Operation) -> nn.Module | None:
    path = path_of(model, operation["path"])
    if path is None:
        return None
    try:
        return model.get_submodule(path) if path else model
    except AttributeError:
        raise _misfit(operation, f"{type(model).__name__} has no module {path}") from None


def _put(model: PreTrainedModel, operation: Operation, build: Callable[[], nn.Module]) -> bool:
    found = _owner(model, operation)
    if found is None:
        return False
    owner, name = found
    present = owner._modules.get(name)
    if (present is None) != bool(operation.get("new")) or (present is None and hasattr(owner, name)):
        state = "is not there" if present is None else "is there already"
        raise _misfit(operation, f"the module {state}")
    try:
        module = build()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise _misfit(operation, f"its arguments build no module: {error}") from error
    module.train(owner.training)
    owner._modules[name] = module
    return True


def _replace(model: PreTrainedModel, operation: Operation) -> bool:
    cls = registry.layer(operation["kind"])
    return _put(model, operation, lambda: cls(**operation["arguments"]))


def _resize(model: PreTrainedModel, operation: Operation) -> bool:
    if operation["class"] == PARAMETER:
        return _resize_parameter(model, operation)
    known = STOCK.get(operation["class"])
    if known is None:
        raise _misfit(operation, f"a layout can't build the class {operation['class']!r:.80}")
    return _put(model, operation, lambda: known.build(**operation["arguments"]))


def _resize_parameter(model: PreTrainedModel, operation: Operation) -> bool:
    found = _owner(model, operation)
    if found is None:
        return False
    owner, name = found
    shape = operation["arguments"].get("shape", False)
    if set(operation["arguments"]) != {"shape"} or not (shape is None or _is_shape(shape)):
        raise _misfit(operation, "a parameter takes the argument 'shape', a list of lengths or null")
    if name not in owner._parameters:
        raise _misfit(operation, f"{type(owner).__name__} has no parameter {name!r}")
    old = owner._parameters[name]
    if shape is None:
        owner._parameters[name] = None
    else:
        like = old if old is not None else next(model.parameters())
        # By attribute, since recurrent modules keep a second list of their parameters.
        setattr(owner, name, nn.Parameter(torch.empty(shape, dtype=like.dtype, device=like.device)))
    return True


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(length) is int and 0 <= length < 2**40 for length in value)


def _attrs(model: PreTrainedModel, operation: Operation) -> bool:
    module = _module(model, operation)
    if module is None:
        return False
    for name, value in operation["values"].items():
        old = setting_of(module, name)
        if old is _ABSENT or not is_setting(value):
            raise _misfit(operation, f"{type(module).__name__} has no plain attribute {name!r:.80}")
        setattr(module, name, tuple(value) if isinstance(old, tuple) and isinstance(value, list) else value)
    return True


_ABSENT = object()
# State of training or running that modules keep as plain attributes; nothing that belongs into a layout.
_RUNTIME = frozenset(
    {
        "compresskit_attention",
        "compresskit_kv_cache",
        "config",
        "gradient_checkpointing",
        "is_parallelizable",
        "is_quantized",
        "max_seq_len_cached",
        "model_parallel",
        "name_or_path",
        "quantization_method",
        "training",
    }
)


def setting_of(module: nn.Module, name: str) -> Any:
    """The plain public attribute ``name`` of ``module`` (or its class), or a marker if there is none."""
    if name.startswith("_") or name in _RUNTIME:
        return _ABSENT
    value = vars(module).get(name, getattr(type(module), name, _ABSENT))
    return value if value is not _ABSENT and is_setting(value) else _ABSENT


def has_setting(module: nn.Module, name: str) -> bool:
    """Whether an ``attrs`` operation could set ``name`` on ``module``."""
    return setting_of(module, name) is not _ABSENT


def _drop(model: PreTrainedModel, operation: Operation) -> bool:
    found = _owner(model, operation)
    if found is None:
        return False
    owner, name = found
    if owner._modules.get(name) is None:
        raise _misfit(operation, f"{type(owner).__name__} has no module {name!r}")
    if isinstance(owner, nn.ModuleList | nn.Sequential):
        left = [module for key, module in owner._modules.items() if key != name]
        owner._modules.clear()
        owner._modules.update({str(index): module for index, module in enumerate(left)})
    else:
        owner._modules[name] = None
    return True


def _parameter(model: PreTrainedModel, operation: Operation, key: str) -> tuple[str, nn.Parameter] | None:
    path = path_of(model, operation[key])
    if path is None:
        return None
    owner, _, name = path.rpartition(".")
    try:
        parameter = (model.get_submodule(owner) if owner else model)._parameters.get(name)
    except AttributeError:
        parameter = None
    if parameter is None:
        raise _misfit(operation, f"{type(model).__name__} has no parameter {path}")
    return path, parameter


def _tie(model: PreTrainedModel, operation: Operation) -> bool:
    source, target = _parameter(model, operation, "source"), _parameter(model, operation, "target")
    if source is None or target is None:
        return False
    if source[1].shape != target[1].shape or source[1].dtype != target[1].dtype:
        raise _misfit(operation, f"{operation['source']} has another shape or type")
    model.all_tied_weights_keys = {**model.all_tied_weights_keys, target[0]: source[0]}
    return True


def _untie(model: PreTrainedModel, operation: Operation) -> bool:
    target = _parameter(model, operation, "target")
    if target is None:
        return False
    known = dict(model.all_tied_weights_keys)
    if known.pop(target[0], None) is None:
        # The asked class may not tie what the saved class tied (a base model has no head).
        return False
    model.all_tied_weights_keys = known
    return True


def _attention(model: PreTrainedModel, operation: Operation) -> bool:
    from compresskit.nn.attention import install

    module = _module(model, operation)
    if module is None:
        return False
    install(model, module, operation["settings"])
    return True


def _kv_cache(model: PreTrainedModel, operation: Operation) -> bool:
    from compresskit.nn.kv_cache import install

    module = _module(model, operation)
    if module is None:
        return False
    install(model, module, operation["settings"])
    return True


_CARRY_OUT: dict[str, Callable[[PreTrainedModel, Operation], bool]] = {
    "replace": _replace,
    "resize": _resize,
    "attrs": _attrs,
    "drop": _drop,
    "tie": _tie,
    "untie": _untie,
    "attention": _attention,
    "kv_cache": _kv_cache,
}


def is_compressed(module: nn.Module) -> bool:
    """Whether ``module`` is one of our layers."""
    return isinstance(module, CompressedLayer)
