"""Makes a process that has not imported compresskit fail at loading, instead of getting another model.

transformers only warns about a loader that it doesn't know, and then fills what fits: int8 codes become weights,
missing factors random numbers, a replaced attention runs as the stock one. Therefore one 1-D parameter of the base
model is stored under a second name, and its own name holds a tensor of length zero, at which the stock loader stops.
``ignore_mismatched_sizes=True`` defeats this.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.checkpoint.addresses import address_of, base_prefix, path_of
from compresskit.checkpoint.operations import is_compressed
from compresskit.checkpoint.skeleton import empty_model
from compresskit.errors import ModelError

SUFFIX = "_guarded"

# Parts that another class of the same model may lack.
_OPTIONAL_PARTS = ("decoder", "pooler", "lm_head", "cls", "predictions", "classifier", "classification_head", "score")


def choose(model: PreTrainedModel) -> str:
    """The address of the parameter to hide: a stock one, floating, in the base model.

    Best in a part that every class of this model has; then 1-D, not shared, and early.

    Raises:
        ModelError: CK-L014, if the base model has no stock parameter left.
    """
    stock = {name: parameter.shape for name, parameter in empty_model(model).named_parameters(remove_duplicate=False)}
    inside = {f"{path}." for path, module in model.named_modules() if path and is_compressed(module)}
    shared = _shared_names(model)
    found: list[tuple[bool, bool, bool, int, int, str]] = []
    for number, (name, parameter) in enumerate(model.named_parameters(remove_duplicate=False)):
        if stock.get(name) != parameter.shape or not parameter.numel() or not parameter.is_floating_point():
            continue
        if not name.startswith(base_prefix(model)) or name.startswith(tuple(inside)):
            continue
        optional = address_of(model, name).split(".")[0] in _OPTIONAL_PARTS
        flat = parameter.ndim == 1
        found.append((optional, not flat, name in shared, 0 if flat else parameter.numel(), number, name))
    if not found:
        raise ModelError(
            "CK-L014",
            "no stock parameter is left that could guard the checkpoint",
            why="without the guard, a program that doesn't import compresskit would load a wrong model silently",
            fix="leave one norm or bias of the base model as it is",
        )
    return address_of(model, min(found)[-1])


def _shared_names(model: nn.Module) -> set[str]:
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def hide(state: dict[str, Tensor], name: str) -> None:
    """In a state dict about to be written: the tensor ``name`` goes under its second name."""
    state[name + SUFFIX] = state[name]
    state[name] = torch.zeros(0, dtype=state[name].dtype)


def expect(model: PreTrainedModel, address: str) -> None:
    """Make the empty ``model`` expect the tensors that ``hide`` writes."""
    owner, name = _find(model, address)
    parameter = owner._parameters[name]
    if parameter is None:
        raise _no_such_parameter(address)
    owner.register_parameter(name + SUFFIX, parameter)
    owner._parameters[name] = nn.Parameter(torch.empty(0, dtype=parameter.dtype, device=parameter.device))


def restore(model: PreTrainedModel, address: str) -> None:
    """After the loader has filled ``model``: the parameter returns to its own name."""
    owner, name = _find(model, address)
    owner._parameters[name] = owner._parameters.pop(name + SUFFIX)


def _find(model: PreTrainedModel, address: str) -> tuple[nn.Module, str]:
    path = path_of(model, address)
    if path is None:
        raise _no_such_parameter(address)
    owner_path, _, name = path.rpartition(".")
    try:
        owner = model.get_submodule(owner_path) if owner_path else model
    except AttributeError:
        raise _no_such_parameter(address) from None
    if name not in owner._parameters:
        raise _no_such_parameter(address)
    return owner, name


def _no_such_parameter(address: str) -> ModelError:
    return ModelError(
        "CK-L004",
        "the guard of the checkpoint names a parameter that this model doesn't have",
        where=address,
        fix="load it with the classes of the model it was saved from; is config.json of the same checkpoint?",
    )
