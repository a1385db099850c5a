"""A model larger than memory: built without values, and filled part by part from its safetensors.

A part is a block, or some of what lies outside of the blocks. Whoever enters a part finds its tensors in the model, may
change it, and leaves with nothing of it in memory: the model keeps its structure, and values of no part stay.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.checkpoint.files import open_regular, printable
from compresskit.checkpoint.memory import give_back_freed
from compresskit.checkpoint.quiet import quiet_transformers
from compresskit.checkpoint.safetensors_header import TensorInfo, damaged, read_header
from compresskit.checkpoint.skeleton import loader_dtypes, tie_groups
from compresskit.checkpoint.strict_load import empty_of, is_stale, refuse_non_finite
from compresskit.core import anatomy
from compresskit.errors import ModelError

if TYPE_CHECKING:
    from compresskit.checkpoint.source import Source

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_TYPES = {
    **_FLOATS,
    **{"BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
    **{
        f"{kind[0].upper()}{bits}": getattr(torch, f"{kind}{bits}")
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
    },
}
_SHOWN = 5


@dataclass(frozen=True)
class Part:
    """Tensors that are in memory together.

    Args:
        path: of the block, or "" for what lies outside.
        names: of parameters and stored buffers; those of one shared tensor together.
        bytes: what they take in memory.
    """

    path: str
    names: tuple[str, ...]
    bytes: int

    def holds(self, path: str) -> bool:
        """Whether the module, or the bare parameter, at ``path`` has its tensors here."""
        return any(name == path or name.startswith(f"{path}.") for name in self.names)


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: in the file at ``path``, whose values begin at the byte ``start``."""

    path: Path
    info: TensorInfo
    start: int

    def read(self) -> Tensor:
        """The tensor, read into memory of its own: of a mapped file the pages would count beside the copy."""
        tensor = torch.empty(self.info.shape, dtype=_TYPES[self.info.dtype])
        content = tensor.reshape(-1).view(torch.uint8).numpy()
        with open_regular(self.path) as stream:
            stream.seek(self.start + self.info.begin)
            if stream.readinto(content.data) != tensor.nbytes:
                raise damaged(self.path, "it was cut short while it was read")
        return tensor


def places(path: Path) -> dict[str, Stored]:
    """Where the tensors of the safetensors file at ``path`` lie, by name."""
    header = read_header(path)
    start = header.identity.size - max((info.end for info in header.tensors.values()), default=0)
    return {name: Stored(path, info, start) for name, info in header.tensors.items()}


class StreamedModel:
    """The model of ``source`` on the meta device, and its parts.

    Args:
        dtype: floating type to compress in; by default the saved one.

    Attributes:
        model: without values, outside of ``loaded``.
        parts: what comes before the blocks, and runs before them; the blocks in the model's order; then the rest in
            pieces no larger than the largest block where that goes.

    Raises:
        ModelError: CK-L063, names or shapes of the files aren't the model's own; CK-L064, blocks share tensors; what
            ``Source.load_model`` finds about the config.
    """

    def __init__(self, source: Source, dtype: torch.dtype | str | None = None) -> None:
        _ = source.fingerprint  # hashes, and compares with the Hub's, before anything is read
        self.where = printable(source.path)
        with quiet_transformers():
            self.model: PreTrainedModel = empty_of(
                source.path,
                source.config,
                source.tensors,
                dtype=_saved_type(source) if dtype is None else dtype,
                trust_remote_code=source.trust_remote_code,
            )
            release(self.model)  # XLNet's parameters are made with values all the same
        self._groups = _shared_names(self.model)
        self._files = {
            name: place
            for file in source.files.values()
            if file.role == "weights" and file.name.endswith(".safetensors") and "/" not in file.name
            for name, place in places(file.path).items()
        }
        self._check_names(source)
        kinds = loader_dtypes(self.model)
        self._types = {name: kinds.get(name, tensor.dtype) for name, tensor in self._state().items()}
        self.parts = _parts(self.model, self._groups)
        self._computed: set[int] = set()

    def compute_buffers(self) -> None:
        """Give the buffers their values that no file holds: positions, frequencies of rotary embeddings.

        They stay, whatever part is loaded: a model without them can't be run.
        """
        owner: dict[str, PreTrainedModel] = {}
        for path, module in self.model.named_modules():
            owner[path] = module if isinstance(module, PreTrainedModel) else owner[path.rpartition(".")[0]]
            if not module._non_persistent_buffers_set:
                continue
            for name, buffer in module._buffers.items():
                if name in module._non_persistent_buffers_set and buffer is not None:
                    module._buffers[name] = torch.empty_like(buffer, device="cpu")
                    self._computed.add(id(module._buffers[name]))
            with torch.no_grad():  # as transformers itself fills them in when it has loaded a model
                owner[path]._init_weights(module)

    def _state(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict(keep_vars=True))

    def _check_names(self, source: Source) -> None:
        """Every tensor of the model is in the files under one of its names, in its shape, and none is left over."""
        state = self._state()
        missing = [name for name, group in self._groups.items() if name in state and not group & self._files.keys()]
        extra = [
            name for name in self._files if name not in state and not is_stale(name, str(self.model.config.model_type))
        ]
        shapes = [
            name
            for name, tensor in state.items()
            if name in self._files and tuple(tensor.shape) != source.tensors[name].shape
        ]
        for names, what in ((missing, "missing"), (extra, "left over"), (shapes, "of another shape")):
            if names:
                raise ModelError(
                    "CK-L063",
                    "the tensors of the files are not those of the model, one by one",
                    where=self.where,
                    why=f"{len(names)} are {what}: {', '.join(printable(name, 100) for name in names[:_SHOWN])}",
                    fix="load the whole model, without low memory: transformers renames or joins tensors as it loads",
                )

    @contextmanager
    def loaded(self, part: Part) -> Iterator[None]:
        """Inside, the model has the values of ``part``; afterwards of nothing.

        Raises:
            ModelError: CK-M014, values that aren't finite; CK-M015, a shared tensor is there twice, and differs.
        """
        try:
            for group in dict.fromkeys(self._groups[name] for name in part.names):
                self._fill(group)
            refuse_non_finite(self.model, self.where)
            yield
        finally:
            release(self.model, self._computed)
            give_back_freed()

    def _fill(self, group: frozenset[str]) -> None:
        stored = sorted(group & self._files.keys())
        value = self._files[stored[0]].read()
        for other in stored[1:]:
            if not torch.equal(value, self._files[other].read()):
                raise ModelError(
                    "CK-M015",
                    f"config.json ties {other} to {stored[0]}, but the files hold two that differ",
                    where=self.where,
                    fix="to keep both set tie_word_embeddings to false in config.json, or delete one from the file",
                )
        first = min(group)
        old = self._state()[first]
        value = value.to(self._types[first]) if value.is_floating_point() else value
        new = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
        for name in group:
            owner, _, last = name.rpartition(".")
            _put(self.model.get_submodule(owner), last, new)


def _saved_type(source: Source) -> torch.dtype | str:
    """The type that the config names, else that of the first floating tensor."""
    named = source.config.get("dtype") or source.config.get("torch_dtype")
    if isinstance(named, str):
        return named.removeprefix("torch.")
    return next((_FLOATS[info.dtype] for info in source.tensors.values() if info.dtype in _FLOATS), torch.float32)


def _shared_names(model: PreTrainedModel) -> dict[str, frozenset[str]]:
    """Of each stored tensor all its names."""
    found = {name: frozenset((name,)) for name in model.state_dict()}
    found.update({name: group for group in tie_groups(model) for name in group})
    return found


def _put(module: nn.Module, name: str, tensor: Any) -> None:
    table: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
    table[name] = tensor


def release(model: nn.Module, kept: Container[int] = ()) -> None:
    """Leave every parameter and buffer of ``model`` without its values; what is shared stays shared.

    Args:
        kept: ids of tensors that stay as they are.
    """
    empty: dict[int, Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None or tensor.device.type == "meta" or id(tensor) in kept:
                    continue
                if id(tensor) not in empty:
                    bare: Tensor = torch.empty_like(tensor, device="meta")
                    if isinstance(tensor, nn.Parameter):
                        bare = nn.Parameter(bare, tensor.requires_grad)
                    empty[id(tensor)] = bare
                _put(module, name, empty[id(tensor)])


def _parts(model: PreTrainedModel, groups: dict[str, frozenset[str]]) -> tuple[Part, ...]:
    state = dict(model.state_dict(keep_vars=True))
    paths = list(dict.fromkeys(block.path for block in anatomy.of(model).blocks))
    blocks = [_part(path, [name for name in state if name.startswith(f"{path}.")], state) for path in paths]
    for part in blocks:
        outside = [name for own in part.names for name in groups[own] - set(part.names)]
        if outside:
            raise ModelError(
                "CK-L064",
                "a block shares a tensor with another part of the model",
                where=outside[0],
                fix="load the whole model, without low memory",
            )
    inside = {name for part in blocks for name in part.names}
    largest = max((part.bytes for part in blocks), default=0)
    pieces = _together([name for name in state if name not in inside], groups)
    order = {name: number for number, name in enumerate(state)}
    start = min((order[name] for name in inside), default=0)
    first = [names for names in pieces if order[names[0]] < start]
    found = [_part("", [name for names in first for name in names], state)] if first else []
    found += blocks
    waiting: list[str] = []
    for names in (names for names in pieces if names not in first):
        if waiting and _part("", [*waiting, *names], state).bytes > largest:
            found.append(_part("", waiting, state))
            waiting = []
        waiting = [*waiting, *names]
    if waiting:
        found.append(_part("", waiting, state))
    return tuple(found)


def _part(path: str, names: list[str], state: dict[str, Tensor]) -> Part:
    sizes = {id(state[name]): state[name].nbytes for name in names}
    return Part(path, tuple(names), sum(sizes.values()))


def _together(names: list[str], groups: dict[str, frozenset[str]]) -> list[list[str]]:
    """``names`` in pieces: those of one module, and of modules that share a tensor, stay together."""
    pieces: list[set[str]] = []
    for name in names:
        owner = name.rpartition(".")[0]
        joined = {name, *groups[name]}
        apart = []
        for piece in pieces:
            if piece & joined or any(each.rpartition(".")[0] == owner for each in piece):
                joined |= piece
            else:
                apart.append(piece)
        pieces = [*apart, joined]
    rank = {name: number for number, name in enumerate(names)}
    return sorted((sorted(piece, key=rank.__getitem__) for piece in pieces), key=lambda piece: rank[piece[0]])
