"""S01 to S04, S08 to S12: hostile weight files and indexes; nothing of them is run or unpickled."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from compresskit.checkpoint.safetensors_header import read_header
from compresskit.checkpoint.save import save_checkpoint
from compresskit.checkpoint.source import open_source
from compresskit.errors import CompressKitError
from tests.conftest import ROOT
from tests.faults.conftest import Folder
from tests.faults.test_model import refused


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.canary),))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def pickled(canary: Path, protocol: int = 2) -> bytes:
    return pickle.dumps({"weight": Payload(canary)}, protocol=protocol)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt", "model.pkl"])
def test_s01_weights_as_a_pickle(bert: Folder, canary: Path, name: str) -> None:
    bert.weights.unlink()
    (bert.path / name).write_bytes(pickled(canary))
    assert name in refused(bert.path, "CK-S001", 6).what
    assert not canary.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_s02_a_pickle_that_poses_as_safetensors(bert: Folder, canary: Path, protocol: int) -> None:
    bert.weights.write_bytes(pickled(canary, protocol))
    with pytest.raises(CompressKitError) as raised:
        open_source(bert.path)
    assert raised.value.exit_code in (3, 6)
    assert protocol > 3 or raised.value.code == "CK-S002"
    assert not canary.exists()


def test_s02_an_archive_that_poses_as_safetensors(bert: Folder, canary: Path) -> None:
    with zipfile.ZipFile(bert.weights, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(canary))
    assert "zip" in refused(bert.path, "CK-S002", 6).what
    assert not canary.exists()


def test_s03_a_pickle_beside_good_weights_is_left_alone(bert: Folder, canary: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin"):
        (bert.path / name).write_bytes(pickled(canary))
    opened = open_source(bert.path)
    assert "pytorch_model.bin" in opened.notices[0]
    save_checkpoint(opened.load_model(), tmp_path / "out", source=opened)
    assert not canary.exists()
    assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix in (".bin", ".pt")] == []


def test_s03_a_module_of_sentence_transformers_as_a_pickle(bert: Folder, canary: Path) -> None:
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules.append({"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (bert.path / "modules.json").write_text(json.dumps(modules))
    (bert.path / "2_Dense").mkdir()
    (bert.path / "2_Dense" / "config.json").write_text("{}")
    (bert.path / "2_Dense" / "pytorch_model.bin").write_bytes(pickled(canary))
    refused(bert.path, "CK-S001", 6)
    assert not canary.exists()


@pytest.mark.parametrize("forced", [False, True])
def test_s04_there_is_no_way_back_to_unpickling(
    bert: Folder, canary: Path, forced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        refused(bert.path, "CK-S005", 6)
    bert.weights.unlink()
    (bert.path / "pytorch_model.bin").write_bytes(pickled(canary))
    refused(bert.path, "CK-S005" if forced else "CK-S001", 6)
    assert not canary.exists()


def raw(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: Any = (2,), dtype: Any = "F32", offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def header_refused(path: Path, content: bytes, code: str = "CK-M004") -> CompressKitError:
    path.write_bytes(content)
    started = time.perf_counter()
    with pytest.raises(CompressKitError) as raised:
        read_header(path)
    assert raised.value.code == code, str(raised.value)
    assert time.perf_counter() - started < 0.5
    return raised.value


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 0, 1])
def test_s08_absurd_header_lengths(tmp_path: Path, length: int) -> None:
    header_refused(tmp_path / "x.safetensors", raw({"a": entry()}, bytes(8), length=length))


def test_s08_seven_bytes(tmp_path: Path) -> None:
    assert "7 bytes" in header_refused(tmp_path / "x.safetensors", bytes(7)).why


MEASURE = """
import resource, sys, time
from pathlib import Path
from compresskit.checkpoint.safetensors_header import read_header
from compresskit.errors import ModelError
resource.setrlimit(resource.RLIMIT_AS, (500 * 10**6, 500 * 10**6))
for name in sys.argv[1:]:
    started = time.process_time()
    try:
        read_header(Path(name))
    except ModelError as error:
        print(error.code, time.process_time() - started)
"""


def test_s09_huge_headers_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    sizes = {
        "header of 99 MB": raw(b"{", length=99_000_000),
        "metadata of 90 MB": raw(b'{"__metadata__":{"x":"', length=90_000_000),
        "a million tensors": raw(b'{"t0":{"dtype":"F32"', length=67_000_000),
    }
    files = {
        "many tensors": raw(b"{" + b",".join(b'"%d":{}' % number for number in range(230_000)) + b"}"),
        "many lists": raw(b'{"a":[' + b"[]," * 8_000_000 + b"[]]}"),
        "many numbers": raw(b'{"a":[' + b"1," * 12_000_000 + b"1]}"),
        "deep": raw(b'{"a":' + b"[" * 300_000 + b"]" * 300_000 + b"}"),
        "deep objects": raw(b'{"a":' * 150_000 + b"1" + b"}" * 150_000),
        "long number": raw(b'{"a":' + b"1" * 20_000_000 + b"}"),
    }
    paths = []
    for name, content in (sizes | files).items():
        paths.append(tmp_path / f"{name}.safetensors")
        paths[-1].write_bytes(content)
        if name in sizes:
            os.truncate(paths[-1], 100_000_000)
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [line.split() for line in ran.stdout.splitlines()]
    assert [code for code, _ in found] == ["CK-M004"] * len(paths)
    assert max(float(seconds) for _, seconds in found) < 1


def test_s09_a_large_but_honest_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({f"layer.{number}.weight": entry((0,), "F32", (0, 0)) for number in range(20_000)}))
    assert len(read_header(path).tensors) == 20_000


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, "overlaps"),
        ({"a": entry(), "b": entry(offsets=(0, 8))}, 8, "overlaps"),
        ({"a": entry(), "b": entry(offsets=(16, 24))}, 24, "hole"),
        ({"a": entry(offsets=(8, 16))}, 16, "hole"),
        ({"a": entry()}, 9, "follow the last tensor"),
        ({"a": entry()}, 7, "cut short"),
        ({}, 4, "follow the last tensor"),
        (b'{"a":{},"a":{}}', 0, "twice"),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[0],"data_offsets":[0,0]}}', 0, "twice"),
        ({"a": entry(offsets=(-8, 0))}, 0, "begin and end"),
        ({"a": entry(offsets=(8, 0))}, 8, "begin and end"),
        ({"a": entry(offsets=(0, 8, 8))}, 8, "begin and end"),
        ({"a": entry(offsets=(0.0, 8.0))}, 8, "begin and end"),
        ({"a": entry(offsets=(False, True))}, 8, "begin and end"),
        ({"a": entry(shape=(-2, -1))}, 8, "list of sizes"),
        ({"a": entry(shape=(2.0,))}, 8, "list of sizes"),
        ({"a": entry(shape=(2**32, 2**32))}, 8, "2^48"),
        ({"a": entry(shape=(2**62, 4))}, 8, "2^48"),
        ({"a": entry(shape=(2**64,))}, 8, "list of sizes"),
        ({"a": entry(shape=[1] * 17)}, 4, "list of sizes"),
        ({"a": entry(shape=(3,))}, 8, "takes 8 bytes"),
        ({"a": entry(dtype="F31")}, 8, "unknown type"),
        ({"a": entry(dtype=["F32"])}, 8, "unknown type"),
        ({"a": {**entry(), "extra": 1}}, 8, "hasn't dtype"),
        ({"a": [1]}, 8, "hasn't dtype"),
        ({"__metadata__": {"a": 1}}, 0, "metadata"),
        (b'{"a":NaN}', 0, "no JSON"),
        (b'{"a"', 0, "no JSON"),
        (b'{"\xff":1}', 0, "no JSON"),
    ],
)  # fmt: skip
def test_s10_impossible_headers(tmp_path: Path, header: Any, data: int, why: str) -> None:
    assert why in header_refused(tmp_path / "x.safetensors", raw(header, bytes(data))).why


@pytest.mark.parametrize(
    "name",
    ["../../x", "/etc/passwd", "a\\b", "a/../b", "nul\0", "\x1b[31m", "right\u202eleft", "", "x" * 513, "n\nl"],
)
def test_s11_tensor_names_that_are_no_names(tmp_path: Path, name: str) -> None:
    error = header_refused(tmp_path / "x.safetensors", raw({name: entry()}, bytes(8)))
    assert error.why.isprintable()


def test_s11_a_name_of_a_megabyte(tmp_path: Path) -> None:
    assert len(str(header_refused(tmp_path / "x.safetensors", raw({"x" * 10**6: entry()}, bytes(8))))) < 600


@pytest.mark.parametrize(
    "target", ["../other.safetensors", "/etc/passwd", "a/../../b.safetensors", "..\\x.safetensors", "C:x", "x\0y", ""]
)
def test_s12_an_index_that_leads_elsewhere(sharded: Folder, target: str) -> None:
    name = "model.safetensors.index.json"
    sharded.json(lambda index: index["weight_map"].update({next(iter(index["weight_map"])): target}), name)
    refused(sharded.path, "CK-S003", 6)


@pytest.mark.parametrize("kind", ["link", "link to a folder", "device", "pipe", "folder"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer_config.json"])
def test_s12_what_is_no_file_inside_the_folder(bert: Folder, tmp_path: Path, name: str, kind: str) -> None:
    path = bert.path / name
    outside = tmp_path / "outside"
    if path.exists():
        path.rename(outside)
    else:
        outside.write_text("{}")
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "link to a folder":
        path.symlink_to(tmp_path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    started = time.perf_counter()
    refused(bert.path, "CK-S003", 6)
    assert time.perf_counter() - started < 1


def test_s12_links_inside_the_folder_are_fine(bert: Folder) -> None:
    bert.weights.rename(bert.path / "real.safetensors")
    bert.weights.symlink_to("real.safetensors")
    open_source(bert.path).load_model()
