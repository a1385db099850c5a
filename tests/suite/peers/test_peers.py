"""Peers on a tiny model where their package is installed; the reason where it isn't."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from compresskit.bench.engines import engine, is_engine
from compresskit.bench.engines.base import Settings
from compresskit.bench.subjects import find
from compresskit.checkpoint.source import open_source
from compresskit.suite.peers import PEERS, Material, Peer
from compresskit.suite.peers.base import link_all, put_beside
from compresskit.suite.points import make_baseline
from tests import models

MODULES = {"torch-ao-dynamic": "torch", "torchao-int8": "torchao", "openvino-fp32": "openvino"}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("peers")
    source = open_source(str(models.write_checkpoint(models.tiny("bert"), folder / "source")))
    base = make_baseline(source, folder / "work", ["onnxruntime"], plain=True)
    return Material(source, Path(base["plain"]), ["the cat sat on a mat", "a good film", "we like the park"])


def absent(peer: Peer) -> str | None:
    found = peer.absent()
    if found is None and any(find_spec(package) is None for package in peer.packages):
        return "not importable"
    return found


@pytest.mark.parametrize("name", list(PEERS))
@pytest.mark.filterwarnings("ignore")
def test_a_peer_gives_a_model_that_runs(name: str, material: Material, tmp_path: Path) -> None:
    peer = PEERS[name]
    why = absent(peer)
    if why is not None:
        pytest.skip(why)
    if name.startswith("bitsandbytes"):
        pytest.importorskip("bitsandbytes")
    folder = tmp_path / name
    folder.mkdir()
    made = peer.make(material, folder)
    (subject,) = find([made.spec], None)
    assert subject.tokenizer == folder
    running = engine(subject.engine)
    running.load(subject.path, Settings(threads=1))
    batch = {
        "input_ids": np.array([[2, 40, 41, 3], [2, 42, 3, 0]]),
        "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "token_type_ids": np.zeros((2, 4), dtype=np.int64),
    }
    reference = engine("torch")
    reference.load(material.source.path, Settings(threads=1))
    expected = reference.run(batch)["last_hidden_state"]
    found = running.run(batch)["last_hidden_state"]
    mask = batch["attention_mask"].astype(bool)
    left, right = found[mask], expected[mask]
    cosine = (left * right).sum(-1) / np.linalg.norm(left, axis=-1) / np.linalg.norm(right, axis=-1)
    assert cosine.min() > (0.9999 if name == "openvino-fp32" else 0.8)
    if ":" in subject.engine:
        assert 0 < running.details()["stored_bytes"] < sum(subject.served.values())


def test_a_missing_package_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = PEERS["nncf-ptq-int8"]
    monkeypatch.setattr(type(peer), "packages", ("surely-not-installed-anywhere",))
    assert peer.absent() == "surely-not-installed-anywhere is not installed (extra `peers`)"
    monkeypatch.setattr(type(peer), "packages", ("numpy",))
    assert peer.absent() is None


def test_peers_have_names_and_titles_of_their_own() -> None:
    assert len({peer.title for peer in PEERS.values()}) == len(PEERS)
    assert all(peer.name == name and peer.packages for name, peer in PEERS.items())


def test_only_engines_of_this_package_are_named_by_their_place() -> None:
    assert is_engine("compresskit.suite.peers.torch_engines:TorchAo")
    assert not is_engine("os:system")
    assert not is_engine("compresskit")


def test_all_but_weights_lies_beside_a_peers_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"):
        (source / name).write_text("x")
    put_beside(source, tmp_path / "beside")
    found = {str(path.relative_to(tmp_path / "beside")) for path in (tmp_path / "beside").rglob("*") if path.is_file()}
    assert found == {"config.json", "tokenizer.json", "1_Pooling/config.json"}
    link_all(source, tmp_path / "all")
    assert (tmp_path / "all" / "model.safetensors").read_text() == "x"
    assert (tmp_path / "all" / "1_Pooling" / "config.json").is_file()
