"""The empty model that a saved config gives, and what can be seen of a model without its values.

The skeleton is made as transformers' loader makes it: the config as it comes back from JSON, on the meta device, in
the model's data type, ties not yet made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import build_glob_alternation
from transformers.initialization import no_tie_weights

from compresskit.checkpoint.operations import has_setting, is_compressed, plain, setting_of
from compresskit.errors import ModelError


def model_dtype(model: nn.Module) -> torch.dtype:
    """The floating type of most stock parameters; scales of our layers keep a type of their own and don't count."""
    counts: dict[torch.dtype, int] = {}
    for stock in (True, False):
        for module in model.modules():
            if is_compressed(module) == stock:
                continue
            for parameter in module.parameters(recurse=False):
                if parameter.is_floating_point():
                    counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
        if counts:
            return max(counts, key=counts.__getitem__)
    return torch.get_default_dtype()


def computes_in_half(model: nn.Module) -> bool:
    """Whether the model computes in 16 bits."""
    return model_dtype(model) in (torch.float16, torch.bfloat16)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make ``dtype`` torch's default for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def empty_model(model: PreTrainedModel) -> PreTrainedModel:
    """A stock instance of the class of ``model``, made from its config as a file would give it, on the meta device.

    Raises:
        ModelError: CK-L021, if the config doesn't survive being written and read.
    """
    content = json.loads(model.config.to_json_string())
    content.pop("quantization_config", None)
    try:
        config = type(model.config).from_dict(content)
        with default_dtype(model_dtype(model)), torch.device("meta"), no_tie_weights():
            return type(model)(config)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise ModelError(
            "CK-L021",
            f"no {type(model).__name__} can be made from this model's config",
            why=f"{type(error).__name__}: {error}",
            fix="undo the change of model.config that made it inconsistent",
        ) from error


@dataclass(frozen=True)
class Picture:
    """All of a model that the layout must give back. Keys are paths and names."""

    modules: dict[str, Any]
    attributes: dict[str, Any]
    parameters: dict[str, Any]
    buffers: dict[str, Any]
    ties: frozenset[frozenset[str]]
    attention: dict[str, Any]

    def first_difference(self, other: Picture) -> tuple[str, str] | None:
        """(path, sentence) for the first thing that differs, or None. ``self`` is the live model."""
        for what in ("modules", "parameters", "buffers", "attributes", "attention"):
            mine, theirs = getattr(self, what), getattr(other, what)
            for path in [*mine, *(key for key in theirs if key not in mine)]:
                if mine.get(path) != theirs.get(path):
                    return path, f"{what}: {mine.get(path)} in the model, {theirs.get(path)} from the layout"
        for group in sorted(self.ties ^ other.ties, key=sorted):
            return min(group), f"tied in {'the model' if group in self.ties else 'the layout'} only: {sorted(group)}"
        return None


def picture(model: PreTrainedModel, *, as_loaded: bool = False, apart: Iterable[frozenset[str]] = ()) -> Picture:
    """What can be seen of ``model``.

    Args:
        as_loaded: show the types that the loader will give, and the ties that it will make.
        apart: pairs of names whose tie the loader will not make, since their values differ.
    """
    stored = set(model.state_dict(keep_vars=True))
    kinds = loader_dtypes(model) if as_loaded else {}
    modules, attributes, attention = {}, {}, {}
    for path, module in model.named_modules(remove_duplicate=False):
        modules[path] = _kind(module)
        if not is_compressed(module):
            attributes.update({f"{path}:{name}": plain_setting(module, name) for name in settings(module)})
        for name in ("compresskit_attention", "compresskit_kv_cache"):
            if getattr(module, name, None):
                attention[f"{path}:{name}"] = plain(getattr(module, name))
    return Picture(
        modules=modules,
        attributes=attributes,
        parameters={
            name: (list(parameter.shape), str(kinds.get(name, parameter.dtype)))
            for name, parameter in model.named_parameters(remove_duplicate=False)
        },
        buffers={
            name: (list(buffer.shape), str(kinds.get(name, buffer.dtype)) if name in stored else "not stored")
            for name, buffer in model.named_buffers(remove_duplicate=False)
        },
        ties=frozenset(group for group in tie_groups(model, known=as_loaded, apart=apart) if len(group) > 1),
        attention=attention,
    )


def _kind(module: nn.Module) -> Any:
    if is_compressed(module):
        return type(module).kind, plain(module.arguments())  # type: ignore[attr-defined, operator]
    return type(module).__name__


def settings(module: nn.Module) -> list[str]:
    """Names of the plain attributes of ``module`` that belong to its structure."""
    return [name for name in vars(module) if has_setting(module, name)]


def plain_setting(module: nn.Module, name: str) -> Any:
    """A plain attribute as JSON gives it back; True and 1 are told apart."""
    value = setting_of(module, name)
    if isinstance(value, tuple | list):
        return [_typed(item) for item in value]
    return _typed(value)


def _typed(value: Any) -> Any:
    return (str(type(value).__name__), value) if isinstance(value, bool) else value


def loader_dtypes(model: PreTrainedModel) -> dict[str, torch.dtype]:
    """Names whose type the loader sets apart (``_keep_in_fp32_modules``), for an empty ``model``."""
    plan = model._get_dtype_plan(model_dtype(model))
    if not plan:
        return {}
    pattern, by_group, _ = build_glob_alternation(list(plan))
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        match = pattern.search(name)
        if match is not None and tensor.is_floating_point():
            found[name] = plan[by_group[str(match.lastgroup)]]
    return found


def tie_groups(
    model: PreTrainedModel, *, known: bool = True, apart: Iterable[frozenset[str]] = ()
) -> list[frozenset[str]]:
    """Names of parameters, grouped by being one parameter; every name is in one group.

    Args:
        known: add the ties that the loader will make, of names that exist.
        apart: pairs that the loader will not tie.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    group_of = {name: set(names) for names in owners.values() for name in names}
    for names in owners.values():
        shared = group_of[names[0]]
        for name in names:
            group_of[name] = shared
    split = set(apart)
    for target, source in valid_ties(model).items() if known else ():
        if group_of[target] is group_of[source] or frozenset((target, source)) in split:
            continue
        group_of[source] |= group_of[target]
        for name in group_of[target]:
            group_of[name] = group_of[source]
    return list(dict.fromkeys(frozenset(group) for group in group_of.values()))


def valid_ties(model: PreTrainedModel) -> dict[str, str]:
    """transformers' table of ties, target -> source, without names that are no parameters any more."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    table: dict[str, str] = model.all_tied_weights_keys
    return {target: source for target, source in table.items() if target in names and source in names}
