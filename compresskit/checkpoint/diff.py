"""Reads the layout off a live model: the operations that make the stock skeleton equal to it.

Both trees are walked together. Each operation is carried out on the skeleton at once, so that what follows is compared
with the model as it will be replayed.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from compresskit.checkpoint.addresses import address_of
from compresskit.checkpoint.operations import (
    PARAMETER,
    STOCK,
    Operation,
    carry_out,
    check,
    has_setting,
    is_compressed,
    plain,
    stock_class,
)
from compresskit.checkpoint.skeleton import (
    default_dtype,
    empty_model,
    model_dtype,
    plain_setting,
    settings,
    tie_groups,
    valid_ties,
)
from compresskit.errors import ModelError

_CONTAINERS = (nn.ModuleList, nn.Sequential)


def read_operations(model: PreTrainedModel) -> tuple[list[Operation], frozenset[frozenset[str]]]:
    """The layout of ``model``, not yet verified, and the pairs that stay untied without an operation.

    Raises:
        ModelError: CK-L010 to CK-L012, naming the path of what no operation can describe.
    """
    reader = _Reader(model)
    with default_dtype(model_dtype(model)), torch.device("meta"):
        reader.walk("")
        reader.read_ties()
        apart = reader.read_unties()
    return reader.operations, apart


class _Reader:
    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.skeleton = model, empty_model(model)
        self.operations: list[Operation] = []

    def emit(self, name: str, path: str, **more: Any) -> None:
        try:
            operation = plain({"op": name, "path": address_of(self.model, path), **more})
        except (TypeError, ValueError) as error:
            raise _indescribable("CK-L011", f"a setting is not JSON: {error}", path) from error
        self.add(operation)

    def add(self, operation: Operation) -> None:
        check([operation])
        carry_out(self.skeleton, operation)
        self.operations.append(operation)

    def walk(self, path: str) -> None:
        live = self.model.get_submodule(path)
        self.read_module(path, live)
        stock = self.skeleton.get_submodule(path)
        self.read_parameters(path, live, stock)
        self.read_buffers(path, live, stock)
        if not is_compressed(live):
            self.read_attributes(path, live, stock)
        if getattr(live, "compresskit_attention", None):
            self.emit("attention", path, settings=live.compresskit_attention)
        if getattr(live, "compresskit_kv_cache", None):
            self.emit("kv_cache", path, settings=live.compresskit_kv_cache)
        self.read_dropped(path, live, stock)
        for name, child in live._modules.items():
            if child is not None:
                self.walk(f"{path}.{name}" if path else name)

    def read_module(self, path: str, live: nn.Module) -> None:
        stock = self.present(path)
        new = {} if stock is not None else {"new": True}
        if is_compressed(live):
            kind, arguments = type(live).kind, _arguments(path, live)  # type: ignore[attr-defined]
            if type(stock) is not type(live) or _arguments(path, stock) != arguments:
                self.emit("replace", path, kind=kind, arguments=arguments, **new)
            return
        name = stock_class(live)
        if name is not None and (
            type(stock) is not type(live) or STOCK[name].arguments(stock) != STOCK[name].arguments(live)
        ):
            self.emit("resize", path, **{"class": name, "arguments": STOCK[name].arguments(live), **new})
        elif type(stock) is not type(live):
            instead = f"instead of {type(stock).__name__}" if stock is not None else "where the stock model has nothing"
            raise _indescribable("CK-L010", f"{type(live).__name__} stands {instead}", path)

    def present(self, path: str) -> nn.Module | None:
        owner, _, name = path.rpartition(".")
        return self.skeleton.get_submodule(owner)._modules.get(name) if path else self.skeleton

    def read_parameters(self, path: str, live: nn.Module, stock: nn.Module) -> None:
        for name in dict.fromkeys([*live._parameters, *stock._parameters]):
            mine, theirs = live._parameters.get(name), stock._parameters.get(name)
            shape = None if mine is None else list(mine.shape)
            if shape == (None if theirs is None else list(theirs.shape)):
                continue
            where = f"{path}.{name}" if path else name
            if is_compressed(live) or name not in stock._parameters:
                raise _indescribable(
                    "CK-L012",
                    f"{type(live).__name__} has a parameter {name!r} of shape {shape} that it isn't built with",
                    where,
                )
            self.emit("resize", where, **{"class": PARAMETER, "arguments": {"shape": shape}})

    def read_buffers(self, path: str, live: nn.Module, stock: nn.Module) -> None:
        for name in dict.fromkeys([*live._buffers, *stock._buffers]):
            mine, theirs = live._buffers.get(name), stock._buffers.get(name)
            if (None if mine is None else mine.shape) != (None if theirs is None else theirs.shape):
                raise _indescribable(
                    "CK-L012",
                    f"the buffer {name!r} is {_shape(mine)}, and {_shape(theirs)} when built from the config",
                    f"{path}.{name}" if path else name,
                )

    def read_attributes(self, path: str, live: nn.Module, stock: nn.Module) -> None:
        names = [*settings(stock), *(name for name in settings(live) if name not in vars(stock))]
        changed = {}
        for name in names:
            if not has_setting(stock, name):
                continue
            if not has_setting(live, name):
                raise _indescribable("CK-L011", f"the attribute {name!r} is no plain value any more", path)
            if plain_setting(live, name) != plain_setting(stock, name):
                changed[name] = getattr(live, name)
        for name, value in vars(live).items():
            self.refuse_swapped_function(path, name, value, vars(stock).get(name))
        if changed:
            self.emit("attrs", path, values=changed)

    def refuse_swapped_function(self, path: str, name: str, live: Any, stock: Any) -> None:
        """A plain function (an activation) can't be described, so it must be the one that the config gives."""
        functions = (types.FunctionType, types.BuiltinFunctionType)
        if name.startswith("_") or not isinstance(live, functions) or not isinstance(stock, functions):
            return
        if (live.__module__, live.__qualname__) != (stock.__module__, stock.__qualname__):
            raise _indescribable("CK-L011", f"the function {name!r} was changed to {live.__qualname__}", path)

    def read_dropped(self, path: str, live: nn.Module, stock: nn.Module) -> None:
        if isinstance(live, _CONTAINERS):
            dropped = _dropped_entries(path, list(live), list(stock.children()))
        else:
            dropped = [
                name
                for name, module in stock._modules.items()
                if module is not None and live._modules.get(name) is None
            ]
        for name in dropped:
            self.emit("drop", f"{path}.{name}" if path else name)

    def read_ties(self) -> None:
        expected = {name: group for group in tie_groups(self.skeleton) for name in group}
        rank = {name: number for number, (name, _) in enumerate(self.model.named_parameters(remove_duplicate=False))}
        for group in tie_groups(self.model, known=False):
            if len(group) == 1 or group <= expected[min(group)]:
                continue
            source = stored_name(self.model, group)
            for target in sorted(group - expected[source], key=rank.__getitem__):
                self.add({
                    "op": "tie",
                    "source": address_of(self.model, source),
                    "target": address_of(self.model, target),
                })  # fmt: skip

    def read_unties(self) -> frozenset[frozenset[str]]:
        """Pairs that the stock class ties and the model doesn't.

        The stock loader leaves a pair untied when both are in the file and their values differ. An operation is
        needed only where they are equal, but if there are operations anyway, all pairs get one.
        """
        live = {name: group for group in tie_groups(self.model, known=False) for name in group}
        apart = {
            target: source
            for target, source in valid_ties(self.skeleton).items()
            if target in live and source in live and live[target] is not live[source]
        }
        equal = [target for target, source in apart.items() if self.equal(target, source)]
        if not self.operations and not equal:
            return frozenset(frozenset(pair) for pair in apart.items())
        for target in apart:
            self.add({"op": "untie", "target": address_of(self.model, target)})
        return frozenset()

    def equal(self, first: str, second: str) -> bool:
        one, other = self.model.get_parameter(first), self.model.get_parameter(second)
        if one.device.type == "meta" or other.device.type == "meta":
            return True
        return one.shape == other.shape and torch.equal(one.detach().cpu(), other.detach().cpu())


def stored_name(model: PreTrainedModel, group: frozenset[str]) -> str:
    """The name under which tied parameters are stored: the stock class's own choice, else the first."""
    rank = {name: number for number, (name, _) in enumerate(model.named_parameters(remove_duplicate=False))}
    sources = [source for target, source in valid_ties(model).items() if source in group and target in group]
    return min(sources or group, key=rank.__getitem__)


def _dropped_entries(path: str, live: list[nn.Module], stock: list[nn.Module]) -> list[str]:
    """Positions of the entries of ``stock`` that ``live`` lacks, last first, so that each is right when its turn comes.

    Entries are interchangeable while empty, so the last ones go, unless the classes of the blocks tell more.
    """
    surplus = len(stock) - len(live)
    if surplus < 0:
        raise _indescribable(
            "CK-L010", f"it holds {len(live)} modules, and the config's number gives {len(stock)}", path
        )
    if all(_alike(one, other) for one, other in zip(live, stock, strict=False)):
        return [str(index) for index in range(len(stock) - 1, len(live) - 1, -1)]
    dropped, waiting = [], list(live)
    for index, entry in enumerate(stock):
        if waiting and _alike(waiting[0], entry):
            waiting.pop(0)
        else:
            dropped.append(str(index))
    if waiting:
        raise _indescribable("CK-L010", f"{type(waiting[0]).__name__} is none of the stock model's blocks", path)
    return dropped[::-1]


def _alike(live: nn.Module, stock: nn.Module) -> bool:
    return is_compressed(live) or stock_class(live) is not None or type(live) is type(stock)


def _arguments(path: str, layer: Any) -> dict[str, Any]:
    try:
        return dict(plain(layer.arguments()))
    except (TypeError, ValueError) as error:
        raise _indescribable(
            "CK-L010", f"the arguments of {type(layer).__name__} are not JSON: {error}", path
        ) from error


def _shape(tensor: torch.Tensor | None) -> str:
    return "absent" if tensor is None else f"of shape {list(tensor.shape)}"


def _indescribable(code: str, what: str, path: str) -> ModelError:
    return ModelError(
        code,
        f"the checkpoint can't describe this change: {what}",
        where=path,
        why="a saved model is rebuilt from its config and a list of replaced, resized and shared parts",
        fix="undo the change, or make it with a registered layer (compresskit.nn.CompressedLayer)",
    )
