"""Our own check of a safetensors file, before the library sees it: it reads the header and nothing else.

The format: 8 bytes with the header's length (little-endian), a JSON object ``name -> {dtype, shape, data_offsets}``,
then the tensors without a gap. The library accepts headers of 100 MB and a million tensors, which cost it 39 s and
1.6 GB; here the bounds are far lower, and a file that is no safetensors at all is named for what it is.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from compresskit.checkpoint.files import Identity, open_regular, printable
from compresskit.errors import CompressKitError, ModelError, SecurityError

MOST_HEADER_BYTES = 25 * 10**6
MOST_TENSORS = 200_000
MOST_NAME_CHARACTERS = 512
MOST_ELEMENTS = 2**48
MOST_DIMENSIONS = 16

# Bytes an element. What is not here is not known to the layers that could hold it.
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip

_PREFIX = 8
_METADATA = "__metadata__"
_PICKLE_PROTOCOLS = range(2, 6)
_ENTRY = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: its type, shape, and place after the header, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return (self.end - self.begin) // ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Header:
    """What a checked file says of itself."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    identity: Identity


class _Flaw(Exception):
    """A reason to refuse the file, in a sentence."""


def read_header(path: Path) -> Header:
    """Check the file ``path`` and return its header.

    Raises:
        ModelError: CK-M004: cut short, inconsistent, or over a limit.
        SecurityError: CK-S002: a pickle or an archive that poses as safetensors.
    """
    with open_regular(path) as stream:
        identity = Identity.of(os.fstat(stream.fileno()))
        start = stream.read(2 * _PREFIX)
        length = int.from_bytes(start[:_PREFIX], "little")
        possible = len(start) > _PREFIX and start[_PREFIX : _PREFIX + 1] == b"{"
        if not possible or length > MOST_HEADER_BYTES or _PREFIX + length > identity.size:
            _refuse_start(path, start, length, identity.size)
        stream.seek(_PREFIX)
        text = stream.read(length)
    try:
        tensors, metadata = _parse(text)
        end = _check_places(tensors)
        expected = _PREFIX + length + end
        if expected != identity.size:
            extra = "bytes follow the last tensor" if expected < identity.size else "it is cut short"
            raise _Flaw(f"{extra}: {identity.size} bytes, expected {expected}")
    except _Flaw as flaw:
        raise damaged(path, str(flaw)) from None
    return Header(tensors, metadata, identity)


def _refuse_start(path: Path, start: bytes, length: int, size: int) -> NoReturn:
    """Say why the first bytes can't begin a safetensors file, and what they are instead."""
    posing = _what_else(start)
    if posing is not None:
        raise posing(path)
    if size < _PREFIX:
        why = f"it is cut short: {size} bytes, expected at least {_PREFIX}"
    elif length == 0:
        why = "its header is empty"
    elif length > MOST_HEADER_BYTES:
        why = f"its header would have {length} bytes, at most {MOST_HEADER_BYTES} are read"
    elif _PREFIX + length > size:
        why = f"it is cut short: {size} bytes, expected at least {_PREFIX + length}"
    else:
        why = "its header is no JSON object"
    raise damaged(path, why)


def _what_else(start: bytes) -> Any:
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return lambda path: _posing(path, "a zip archive, such as torch.save writes")
    if start[:1] == b"\x80" and len(start) > 1 and start[1] in _PICKLE_PROTOCOLS:
        return lambda path: _posing(path, "a Python pickle")
    if start[:4] == b"GGUF":
        return lambda path: ModelError(
            "CK-M008",
            f"{path.name} is a GGUF file",
            where=printable(path),
            fix="use the safetensors checkpoint that the GGUF file was made from",
        )
    if start.startswith(b"version https://"[: len(start)]) and len(start) >= _PREFIX:
        return lambda path: damaged(path, "it is a Git LFS pointer, not the file itself", fix="run `git lfs pull`")
    return None


def _posing(path: Path, kind: str) -> CompressKitError:
    return SecurityError(
        "CK-S002",
        f"{path.name} is {kind}, not safetensors",
        where=printable(path),
        why="unpickling can run any code",
        fix="get the model as safetensors",
    )


def damaged(path: Path, why: str, fix: str = "") -> ModelError:
    """The error for a weight file that isn't whole."""
    return ModelError(
        "CK-M004",
        f"the weight file {printable(path.name)} can't be used",
        where=printable(path),
        why=why,
        fix=fix or "fetch the file again from where the model came from",
    )


def _parse(text: bytes) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    # Counted first, so that parsing stays within bounds of memory: an entry has one object and two lists.
    if text.count(b"{") > MOST_TENSORS + 2 or text.count(b"[") > 2 * MOST_TENSORS:
        raise _Flaw(f"it has more than {MOST_TENSORS} tensors")
    if text.count(b",") > (3 + MOST_DIMENSIONS) * MOST_TENSORS:
        raise _Flaw("its header has too many values")
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise _Flaw("its header is nested too deeply") from None
    except ValueError as error:
        raise _Flaw(f"its header is no JSON: {printable(error)}") from None
    if not isinstance(content, dict):
        raise _Flaw("its header is no JSON object")
    metadata = content.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Flaw("its metadata are no texts")
    return {_name(name): _tensor(name, entry) for name, entry in content.items()}, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _name(name: str) -> str:
    if not name or len(name) > MOST_NAME_CHARACTERS or not name.isprintable():
        raise _Flaw(f"the tensor name {printable(name, 60)!r} is empty, too long or not printable")
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise _Flaw(f"the tensor name {printable(name, 60)!r} is a path")
    return name


def _tensor(name: str, entry: Any) -> TensorInfo:
    shown = printable(name, 60)
    if not isinstance(entry, dict) or set(entry) != _ENTRY:
        raise _Flaw(f"the entry of {shown} hasn't dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _Flaw(f"{shown} has the unknown type {printable(dtype, 20)!r}")
    if not _sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise _Flaw(f"the shape of {shown} is no list of sizes")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Flaw(f"the offsets of {shown} are no begin and end")
    elements = 1
    for size in sorted(shape):  # zeros first: a shape such as [0, 2**60] is harmless
        elements *= size
        if elements > MOST_ELEMENTS:
            raise _Flaw(f"{shown} would have more than 2^48 elements")
    if offsets[1] - offsets[0] != elements * ITEM_BYTES[dtype]:
        raise _Flaw(f"{shown} takes {offsets[1] - offsets[0]} bytes, its shape and type {elements * ITEM_BYTES[dtype]}")
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _check_places(tensors: dict[str, TensorInfo]) -> int:
    """The end of the last tensor, if each begins where the one before ends."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != end:
            kind = "overlaps the one before" if tensor.begin < end else "leaves a hole before it"
            raise _Flaw(f"{printable(name, 60)} {kind}")
        end = tensor.end
    return end
