"""The only code that assigns into a module tree. It keeps ties, attributes and the config true.

Parameters that several modules share (by ``sharing.layers``, or by the architecture) are changed for all of them: the
first path owns the change, the others follow.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention
from transformers.pytorch_utils import Conv1D

from compresskit.core import anatomy
from compresskit.core.weights import part, view
from compresskit.errors import ModelError
from compresskit.nn.attention import install as install_attention
from compresskit.nn.experts import FUSED, Experts
from compresskit.nn.kv_cache import install as install_kv_cache
from compresskit.nn.recurrent import Recurrent
from compresskit.nn.xlnet import XLNetAttention

__all__ = [
    "alias_groups",
    "aliases",
    "keep_blocks",
    "keep_experts",
    "keep_heads",
    "keep_neurons",
    "open_parts",
    "replace",
    "replace_tied",
    "set_attention",
    "set_attributes",
    "share_module",
    "share_parameters",
    "sync_config",
    "take_columns",
    "take_rows",
    "tied_elsewhere",
    "ties",
    "untie",
]

sync_config = anatomy.sync_config


def _parent(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    owner, _, name = path.rpartition(".")
    return (model.get_submodule(owner) if owner else model), name


def ties(model: nn.Module) -> dict[str, str]:
    """Parameter names that repeat an earlier name's parameter: name -> the earlier name."""
    first: dict[int, str] = {}
    repeated = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            repeated[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
    return repeated


def aliases(model: nn.Module, path: str) -> list[str]:
    """Other paths with a module of the same class whose parameters are the very same objects."""
    inside = part(model, path)
    if inside is not None:
        return [f"{other}.{inside.name}" for other in aliases(model, inside.owner)]
    module = model.get_submodule(path)
    if not _users(model, {id(parameter) for parameter in module.parameters()}, (path,)):
        return []
    groups = _same_parameters(model, type(module))
    group = next((paths for paths in groups if path in paths), [path])
    return [other for other in group if other != path]


def alias_groups(model: nn.Module) -> list[list[str]]:
    """Paths of modules of one class whose parameters are the very same objects, found in one walk of the model."""
    return _same_parameters(model, nn.Module)


def _same_parameters(model: nn.Module, cls: type[nn.Module]) -> list[list[str]]:
    groups: dict[tuple[Any, ...], list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, cls):
            mine = tuple((name, id(value)) for name, value in module.named_parameters(remove_duplicate=False))
            if mine:
                groups.setdefault((type(module), *mine), []).append(path)
    return [paths for paths in groups.values() if len(paths) > 1]


def tied_elsewhere(model: nn.Module, path: str) -> list[str]:
    """Modules of another kind, or with other parameters beside, that use a parameter of ``path``: an untied head."""
    inside = part(model, path)
    if inside is not None:
        return _users(model, {id(inside.parameter)}, (inside.owner, *aliases(model, inside.owner)))
    mine = {id(parameter) for parameter in model.get_submodule(path).parameters()}
    return _users(model, mine, (path, *aliases(model, path)))


def _users(model: nn.Module, parameters: set[int], outside: Sequence[str]) -> list[str]:
    """Paths of the modules that own one of ``parameters``, those at and below ``outside`` left out."""
    inside = tuple(f"{path}." for path in outside)
    return [
        path
        for path, module in model.named_modules(remove_duplicate=False)
        if any(id(parameter) in parameters for parameter in module._parameters.values())
        and path not in outside
        and not path.startswith(inside)
    ]


def replace(model: PreTrainedModel, path: str, module: nn.Module) -> None:
    """Put ``module`` at ``path``, and a parameter-sharing copy of it at every alias of ``path``.

    Raises:
        ModelError: CK-M032, if a module of another kind (a tied head) would keep a copy of the old parameters.
    """
    open_parts(model, [path])
    _replace_all(model, path, module)


def _replace_all(model: PreTrainedModel, path: str, module: nn.Module) -> None:
    followers = aliases(model, path)
    _put(model, {path: module} | {follower: copy.deepcopy(module) for follower in followers})
    for follower in followers:
        share_module(model, path, follower)


def open_parts(model: PreTrainedModel, paths: Sequence[str]) -> None:
    """Where ``paths`` name matrices that are parameters of one module, give its matrices layers of their own.

    Nothing is computed otherwise. ``replace`` does it by itself; who hooks the matrices calls it before.
    """
    found = (part(model, path) for path in paths)
    for owner in dict.fromkeys(inside.owner for inside in found if inside is not None):
        _replace_all(model, owner, _opened(model.get_submodule(owner)))


def _opened(module: nn.Module) -> nn.Module:
    if type(module) in FUSED:
        return Experts.from_module(module)
    if type(module) is XLNetRelativeAttention:
        return XLNetAttention.from_module(module)
    return Recurrent.from_module(cast(nn.RNNBase, module))


def replace_tied(model: PreTrainedModel, modules: Mapping[str, nn.Module]) -> None:
    """Put each module at its path, and make the parameters that they name alike those of the first one.

    For modules of several kinds that are tied to each other: an embedding table, and the head that reads it.

    Raises:
        ModelError: CK-M032, if a module that isn't among them would keep a copy of the old parameters.
    """
    _put(model, modules)
    first, *others = modules
    for other in others:
        for name in modules[first]._parameters.keys() & modules[other]._parameters.keys():
            if modules[first]._parameters[name] is not None and modules[other]._parameters[name] is not None:
                share_parameters(model, f"{first}.{name}", f"{other}.{name}")


def _put(model: PreTrainedModel, modules: Mapping[str, nn.Module]) -> None:
    """Set each module in its place, unless a tie would break."""
    old = {path: model.get_submodule(path) for path in modules}
    kept = {id(parameter) for module in modules.values() for parameter in module.parameters()}
    lost = {id(parameter) for module in old.values() for parameter in module.parameters()} - kept
    loose = _users(model, lost, tuple(modules))
    if loose:
        raise ModelError(
            "CK-M032",
            f"replacing {next(iter(modules))} would untie it from {', '.join(loose)}",
            why="the file would grow by the copy",
            fix="replace all of them and share their parameters",
        )
    for path, module in modules.items():
        owner, name = _parent(model, path)
        owner._modules[name] = module.train(old[path].training)
    _forget_stock_ties(model)


def _forget_stock_ties(model: PreTrainedModel) -> None:
    """Drop from transformers' table the ties of parameters that are gone, so that nothing looks for them."""
    known: dict[str, str] = dict(getattr(model, "all_tied_weights_keys", {}) or {})
    kept = {target: source for target, source in known.items() if _are_one(model, target, source)}
    if kept != known:
        model.all_tied_weights_keys = kept


def _are_one(model: nn.Module, name: str, other: str) -> bool:
    """Whether both names are there, and name one parameter."""
    try:
        (first, one), (second, two) = _parent(model, name), _parent(model, other)
    except AttributeError:
        return False
    # By the tables: as an attribute, the weight of a layer of codes is computed whole.
    found = first._parameters.get(one)
    return found is not None and found is second._parameters.get(two)


def share_parameters(model: nn.Module, source: str, target: str) -> None:
    """Make the parameter named ``target`` the very parameter named ``source``; shapes must agree."""
    owner, name = _parent(model, source)
    parameter = owner._parameters[name]
    other, other_name = _parent(model, target)
    present = other._parameters[other_name]
    if parameter is None or present is None or (parameter.shape, parameter.dtype) != (present.shape, present.dtype):
        raise ModelError(
            "CK-M033", f"{target} can't share {source}", why="one is absent, or shapes or types differ", where=target
        )
    other._parameters[other_name] = parameter


def untie(model: PreTrainedModel, name: str) -> None:
    """Give the parameter named ``name`` values of its own, equal to those that it shared; others stay tied.

    Where the config's ``tie_word_embeddings`` says no more than that nothing is tied any longer, it is set to say so,
    and the checkpoint is a stock one. Else (T5's scales the outputs too) the layout records it.

    Raises:
        ModelError: CK-M062, if nothing shares the parameter.
    """
    repeated = ties(model)
    if name not in {*repeated, *repeated.values()}:
        raise ModelError("CK-M062", f"{name} is tied to nothing", why="no other module uses this parameter")
    owner, own = _parent(model, name)
    shared = cast(nn.Parameter, owner._parameters[own])
    owner._parameters[own] = nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
    _forget_stock_ties(model)
    config = model.config
    if model.all_tied_weights_keys or not getattr(config, "tie_word_embeddings", False):
        return
    before = config.to_dict()
    after = type(config).from_dict({**before, "tie_word_embeddings": False}).to_dict()
    if after == {**before, "tie_word_embeddings": False}:
        config.tie_word_embeddings = False


def share_module(model: nn.Module, source: str, target: str) -> None:
    """Share every parameter of the module ``source`` with ``target``; the two stay distinct modules.

    One module object at two places would carry one ``layer_idx`` and break cached generation.
    """
    names = [name for name, _ in model.get_submodule(source).named_parameters(remove_duplicate=False)]
    others = [name for name, _ in model.get_submodule(target).named_parameters(remove_duplicate=False)]
    if names != others:
        raise ModelError("CK-M033", f"{target} can't share {source}", why="their parameters have other names")
    for name in names:
        share_parameters(model, f"{source}.{name}", f"{target}.{name}")


def take_rows(model: PreTrainedModel, path: str, index: Tensor) -> None:
    """Keep the output rows ``index`` of the (O, I) matrix at ``path``, and of its bias; aliases follow."""
    _resize(model, path, index, rows=True)


def take_columns(model: PreTrainedModel, path: str, index: Tensor) -> None:
    """Keep the input columns ``index`` of the (O, I) matrix at ``path``; aliases follow."""
    _resize(model, path, index, rows=False)


def _resize(model: PreTrainedModel, path: str, index: Tensor, *, rows: bool) -> None:
    plain = view(model, path)
    loose = tied_elsewhere(model, path)
    if loose:
        raise ModelError("CK-M032", f"resizing {path} would untie it from {', '.join(loose)}")
    followers = aliases(model, path)
    index = index.to(plain.weight.device)
    weight = plain.weight.index_select(0 if rows else 1, index)
    stored = weight.T if isinstance(plain.module, Conv1D) else weight
    parameters = {"weight": nn.Parameter(stored.contiguous(), requires_grad=plain.parameter.requires_grad)}
    if rows and plain.bias is not None:
        trained = plain.module.bias.requires_grad
        parameters["bias"] = nn.Parameter(plain.bias.index_select(0, index).contiguous(), requires_grad=trained)  # type: ignore[arg-type]
    for target in (path, *followers):
        module = model.get_submodule(target)
        module._parameters.update(parameters)
        for attribute, value in _size_attributes(module, weight.shape).items():
            setattr(module, attribute, value)


def _size_attributes(module: nn.Module, shape: torch.Size) -> dict[str, int]:
    names: dict[type[nn.Module], tuple[str, str]] = {
        nn.Linear: ("out_features", "in_features"),
        Conv1D: ("nf", "nx"),
        nn.Embedding: ("num_embeddings", "embedding_dim"),
    }
    first, second = names[type(module)]
    return {first: shape[0], second: shape[1]}


def set_attributes(model: nn.Module, path: str, **values: Any) -> None:
    """Set plain attributes (head counts and the like) that the module at ``path`` already has."""
    module = model.get_submodule(path)
    for name, value in values.items():
        if not hasattr(module, name):
            raise ModelError("CK-M034", f"{type(module).__name__} has no attribute {name!r}", where=path)
        setattr(module, name, value)


def keep_neurons(model: PreTrainedModel, ffn: anatomy.FeedForward, index: Tensor) -> None:
    """Keep the neurons ``index`` of a feed-forward network: rows of its inputs, columns of its output."""
    for path in ffn.inputs:
        take_rows(model, path, index)
    take_columns(model, ffn.output, index)
    if ffn.width_attribute is not None:
        set_attributes(model, ffn.path, **{ffn.width_attribute: len(index)})


def keep_heads(model: PreTrainedModel, attention: anatomy.Attention, query_heads: Sequence[int]) -> None:
    """Keep the query heads of ``query_heads`` and the key-value heads that they use.

    With grouped key-value heads, either whole groups go or every group keeps equally many query heads.

    Raises:
        ModelError: CK-M035, if the kept heads leave groups of unequal size, or nothing.
    """
    group = attention.heads // attention.kv_heads
    kept = sorted(set(query_heads))
    per_group: dict[int, int] = {}
    for head in kept:
        per_group[head // group] = per_group.get(head // group, 0) + 1
    if not kept or len(set(per_group.values())) != 1:
        raise ModelError(
            "CK-M035",
            f"heads {kept} leave key-value groups of unequal size",
            where=attention.path,
            fix="keep the same number of query heads in every key-value group that stays",
        )
    query_index = head_index(kept, attention.head_dim)
    kv_index = head_index(sorted(per_group), attention.head_dim)
    wanted: dict[str, list[Tensor]] = {}
    for rows, index in ((attention.query, query_index), (attention.key, kv_index), (attention.value, kv_index)):
        wanted.setdefault(rows.path, []).append(rows.start + index)
    for path, parts in wanted.items():
        take_rows(model, path, torch.cat(parts))
    take_columns(model, attention.output, query_index)
    for table in attention.head_tables:
        take_columns(model, table, torch.tensor(kept))
    values = {"heads": len(kept), "inner": len(kept) * attention.head_dim, "groups": len(kept) // len(per_group)}
    set_attributes(model, attention.path, **{name: values[what] for name, what in attention.attributes.items()})


def keep_experts(model: PreTrainedModel, bank: anatomy.Experts, index: Tensor) -> None:
    """Keep the experts ``index`` of a fused bank, and their rows of its router."""
    for path in (bank.path, bank.router):
        module = model.get_submodule(path)
        for name, parameter in module.named_parameters(recurse=False):
            values = parameter.data.index_select(0, index.to(parameter.device))
            module._parameters[name] = nn.Parameter(values, requires_grad=parameter.requires_grad)
        set_attributes(model, path, num_experts=len(index))


def head_index(heads: Sequence[int], head_dim: int) -> Tensor:
    """Row numbers of ``heads``: head h owns h*D … (h+1)*D - 1."""
    return (torch.tensor(list(heads), dtype=torch.long)[:, None] * head_dim + torch.arange(head_dim)).reshape(-1)


def keep_blocks(model: PreTrainedModel, stack: anatomy.Stack, kept: Sequence[int]) -> None:
    """Keep the blocks ``kept`` of ``stack``; ``layer_idx`` is renumbered, or cached generation goes wrong."""
    modules = model.get_submodule(stack.path)
    if not isinstance(modules, nn.ModuleList):
        raise ModelError("CK-M034", f"{stack.path} is no ModuleList", where=stack.path)
    owner, name = _parent(model, stack.path)
    owner._modules[name] = nn.ModuleList([modules[index] for index in kept])
    owner._modules[name].train(modules.training)  # type: ignore[union-attr]
    for new, old in enumerate(kept):
        if new != old:
            _renumber(modules[old], new)
    types = getattr(model.config, "layer_types", None)
    if types is not None and len(types) == len(stack.blocks):
        model.config.layer_types = [types[index] for index in kept]
    sync_config(model)


def _renumber(block: nn.Module, index: int) -> None:
    for module in block.modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx = index  # type: ignore[assignment]


def set_kv_cache(model: PreTrainedModel, path: str, settings: dict[str, Any] | None) -> None:
    """Let the cache of the attention module at ``path`` be kept as ``settings`` say; None gives the stock one back."""
    install_kv_cache(model, model.get_submodule(path), settings)


def set_attention(model: PreTrainedModel, path: str, settings: dict[str, Any] | None) -> None:
    """Let the attention module at ``path`` compute what ``settings`` say; None gives softmax back."""
    install_attention(model, model.get_submodule(path), settings)
