"""Our reading of a header agrees with the library's on good files, and gives only typed errors on any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from compresskit.checkpoint.safetensors_header import ITEM_BYTES, read_header
from compresskit.errors import CompressKitError

TYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip

TENSORS = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "b": torch.zeros(0, 3),
    "c": torch.tensor(1.5),
    "ü.codes": torch.arange(5, dtype=torch.int8),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "x.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path.read_bytes()


def test_it_reads_what_the_library_wrote(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(good)
    header = read_header(path)
    assert {name: info.shape for name, info in header.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }
    assert {name: info.elements for name, info in header.tensors.items()} == {
        name: tensor.numel() for name, tensor in TENSORS.items()
    }
    assert header.metadata == {"format": "pt"}
    assert header.identity.size == len(good)


def test_every_type(tmp_path: Path) -> None:
    assert set(TYPES) == set(ITEM_BYTES)
    for name, dtype in TYPES.items():
        path = tmp_path / f"{name}.safetensors"
        save_file({"x": torch.zeros(3, dtype=dtype)}, path)
        info = read_header(path).tensors["x"]
        assert (info.dtype, info.end - info.begin) == (name, 3 * dtype.itemsize)


def typed_error(action: Callable[[], object]) -> CompressKitError | None:
    """The typed error that ``action`` ends with, if any; every other error goes through."""
    try:
        action()
    except CompressKitError as error:
        return error
    return None


def compare_with_the_library(path: Path, content: bytes) -> None:
    """What we accept the library accepts, with the same tensors; what we refuse is refused by a typed error."""
    path.write_bytes(content)
    error = typed_error(lambda: read_header(path))
    if error is not None:
        assert error.exit_code in (3, 6)
        return
    tensors = read_header(path).tensors
    try:
        with safe_open(path, "pt") as opened:
            assert set(opened.keys()) == set(tensors)
            for name, info in tensors.items():
                assert tuple(opened.get_slice(name).get_shape()) == info.shape
    except SafetensorError as error:
        pytest.fail(f"we accept what the library refuses: {error}")


fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(st.data())
def test_mutated_bytes_give_typed_errors(good: bytes, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(good)
    header_end = 8 + int.from_bytes(good[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, header_end - 1))
        content[place] = data.draw(st.integers(0, 255) | st.sampled_from(b'{}[],:"0129-'))
    cut = data.draw(st.none() | st.integers(0, len(content)))
    compare_with_the_library(tmp_path / "x.safetensors", bytes(content[:cut]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*TYPES, "F31"]) | JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | JSON,
    }
)


@fuzz
@given(header=st.dictionaries(st.text(max_size=8), ENTRY | JSON, max_size=3) | JSON, size=st.integers(0, 70))
def test_made_up_headers_give_typed_errors(tmp_path: Path, header: Any, size: int) -> None:
    text = json.dumps(header).encode()
    compare_with_the_library(tmp_path / "x.safetensors", len(text).to_bytes(8, "little") + text + bytes(size))
