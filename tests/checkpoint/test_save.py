"""What a saved checkpoint holds, and what adding, publishing and verifying do; faults are in tests/faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, PreTrainedModel

from compresskit.checkpoint import load, manifest
from compresskit.checkpoint.save import add_files, publish_folder, save_checkpoint, verify
from compresskit.checkpoint.source import open_source
from compresskit.errors import CompressKitError, ModelError, UsageError
from tests import models
from tests.checkpoint.toys import ToyInt8, ToyLowRank, replace_all


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source_folder(tmp_path: Path) -> Path:
    folder = models.write_checkpoint(models.tiny("bert"), tmp_path / "source")
    (folder / "README.md").write_text("# Source\n")
    return folder


@pytest.fixture
def saved(source_folder: Path, tmp_path: Path) -> Path:
    source = open_source(source_folder)
    return save_checkpoint(source.load_model(), tmp_path / "out", source=source).path


@pytest.mark.parametrize("name", models.FAMILIES)
def test_a_stock_model_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    for task in models.tasks(name):
        model = models.tiny(name, task=task)
        saved = save_checkpoint(model, tmp_path / task)
        assert saved.native
        again = open_source(saved.path).load_model()
        state = again.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def int8(model: PreTrainedModel) -> None:
    assert replace_all(model, ToyInt8.of)


def low_rank(model: PreTrainedModel) -> None:
    assert replace_all(model, lambda module: ToyLowRank.of(module, 4), every=2)


@pytest.mark.parametrize("edit", [int8, low_rank])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_a_compressed_model_comes_back_bit_for_bit(
    name: str, edit: Callable[[PreTrainedModel], None], tmp_path: Path
) -> None:
    model = models.tiny(name)
    edit(model)
    saved = save_checkpoint(model, tmp_path / "out")
    assert not saved.native
    batch = models.inputs(name)
    expected = models.output(model, batch)
    assert torch.equal(models.output(AutoModel.from_pretrained(saved.path).eval(), batch), expected)
    again = save_checkpoint(open_source(saved.path).load_model(), tmp_path / "again")
    assert content(again.path) == content(saved.path)
    found = verify(saved.path)
    assert (found.native, found.operations > 0, found.files, found.unlisted) == (False, True, 2, ())


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    folders = []
    for place in ("a", "b"):
        folder = models.write_checkpoint(models.tiny("gpt2", task="lm"), tmp_path / place / "source")
        source = open_source(folder)
        folders.append(save_checkpoint(source.load_model(), tmp_path / place / "out", source=source).path)
    assert content(folders[0]) == content(folders[1])


def test_no_metadata_beside_the_format_and_no_paths(saved: Path, tmp_path: Path) -> None:
    raw = (saved / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}
    assert all(str(tmp_path).encode() not in data for data in content(saved).values())


def test_companions_travel_and_extra_files_win(source_folder: Path, tmp_path: Path) -> None:
    source = open_source(source_folder)
    notes = tmp_path / "notes"
    notes.write_bytes(b"from a file")
    extra = {"README.md": "# Compressed\n", "recipe.yaml": b"version: 1\n", "deep/er/notes.txt": notes}
    saved = save_checkpoint(source.load_model(), tmp_path / "out", source=source, extra_files=extra)
    found = content(saved.path)
    assert found["README.md"] == b"# Compressed\n"
    assert found["recipe.yaml"] == b"version: 1\n"
    assert found["deep/er/notes.txt"] == b"from a file"
    assert found["tokenizer.json"] == (source_folder / "tokenizer.json").read_bytes()
    listed = {entry.path for entry in saved.manifest.files}
    assert listed == set(found) - {"manifest.json"}
    assert manifest.read(saved.path) == saved.manifest
    assert saved.disk_bytes == open_source(saved.path).disk_bytes


def test_without_a_source_nothing_travels(tmp_path: Path) -> None:
    saved = save_checkpoint(models.tiny("bert"), tmp_path / "out")
    assert set(content(saved.path)) == {"config.json", "model.safetensors", "manifest.json"}


def test_large_models_are_written_in_several_files(tmp_path: Path) -> None:
    model = models.tiny("bert")
    int8(model)
    saved = save_checkpoint(model, tmp_path / "out", max_shard_size="100KB")
    assert len(list(saved.path.glob("model-*.safetensors"))) > 1
    batch = models.inputs("bert")
    assert torch.equal(models.output(open_source(saved.path).load_model(), batch), models.output(model, batch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    models.tiny("llama", task="lm").save_pretrained(tmp_path / "source")
    model = open_source(tmp_path / "source").load_model(dtype=dtype)
    int8(model)
    saved = save_checkpoint(model, tmp_path / "out")
    again = open_source(saved.path).load_model()
    assert again.dtype == dtype
    batch = models.inputs("llama")
    assert torch.equal(models.output(again, batch), models.output(model, batch))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("config.json", "CK-I014"),
        ("manifest.json", "CK-I014"),
        ("model.safetensors", "CK-I014"),
        ("other.safetensors", "CK-I014"),
        ("model.safetensors.index.json", "CK-I014"),
        ("../x", "CK-S003"),
        ("/x", "CK-S003"),
        ("a\nb", "CK-S003"),
    ],
)
def test_names_of_files_that_are_refused(saved: Path, name: str, code: str) -> None:
    before = content(saved)
    for write in (lambda: add_files(saved, {name: b"x"}), lambda: save_checkpoint(
        models.tiny("bert"), saved, extra_files={name: b"x"}, overwrite=True
    )):  # fmt: skip
        with pytest.raises(CompressKitError) as raised:
            write()
        assert raised.value.code == code
    assert content(saved) == before


def test_adding_replacing_and_removing_files(saved: Path, tmp_path: Path) -> None:
    before = content(saved)
    large = tmp_path / "large"
    large.write_bytes(bytes(1000))
    listed = add_files(saved, {"onnx/model.onnx": b"graph", "onnx/model.onnx.data": large, "README.md": "# New\n"})
    found = content(saved)
    assert found["onnx/model.onnx.data"] == bytes(1000)
    assert found["README.md"] == b"# New\n"
    assert {entry.path for entry in listed.files} == set(found) - {"manifest.json"}
    assert {name for name in before if before[name] != found[name]} == {"README.md", "manifest.json"}
    assert all(path.stat().st_nlink == 1 for path in saved.rglob("*") if path.is_file())
    verify(saved)
    add_files(saved, {"onnx/other.onnx": b"graph"}, remove=["onnx/", "README.md"])
    assert {name for name in content(saved) if name not in before} == {"onnx/other.onnx"}
    assert "README.md" not in content(saved)
    verify(saved)


def test_files_of_the_user_survive_adding(saved: Path) -> None:
    (saved / "my-notes.txt").write_text("mine")
    add_files(saved, {"onnx/model.onnx": b"graph"})
    assert (saved / "my-notes.txt").read_text() == "mine"
    assert verify(saved).unlisted == ("my-notes.txt",)


def test_adding_to_something_else(source_folder: Path, tmp_path: Path) -> None:
    before = content(source_folder)
    with pytest.raises(ModelError) as raised:
        add_files(source_folder, {"x": b"x"})
    assert raised.value.code == "CK-M020"
    with pytest.raises(ModelError, match="no such folder"):
        verify(tmp_path / "absent")
    assert content(source_folder) == before


def test_publishing_a_finished_folder(saved: Path, tmp_path: Path) -> None:
    expected = content(saved)
    target = tmp_path / "deep" / "target"
    assert publish_folder(saved, target) == target
    assert content(target) == expected
    assert not saved.exists()
    other = save_checkpoint(models.tiny("bert", seed=5), tmp_path / "other").path
    expected = content(other)
    with pytest.raises(UsageError):
        publish_folder(other, target)
    publish_folder(other, target, overwrite=True)
    assert content(target) == expected
    assert not other.exists()


def test_publishing_an_unfinished_folder(source_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as raised:
        publish_folder(source_folder, tmp_path / "target")
    assert raised.value.code == "CK-M020"
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: (folder / "README.md").write_text("# source\n"),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: shutil.copy(folder / "tokenizer.json", folder / "config.json"),
    ],
)
def test_verify_finds_every_change(saved: Path, damage: Callable[[Path], Any]) -> None:
    assert verify(saved).native
    damage(saved)
    with pytest.raises(ModelError) as raised:
        verify(saved)
    assert raised.value.code == "CK-M016"


def test_a_model_card_that_people_edit_is_no_reason_not_to_load(saved: Path) -> None:
    (saved / "README.md").write_text("# Edited on the Hub\n")
    open_source(saved).load_model()


def test_the_layout_is_read_once_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, original = [], load.describe

    def counted(model: PreTrainedModel) -> load.CompressedConfig | None:
        asked.append(model)
        return original(model)

    monkeypatch.setattr(load, "describe", counted)
    model = models.tiny("bert")
    replace_all(model, ToyInt8.of, every=2)
    save_checkpoint(model, tmp_path / "one")
    assert len(asked) == 1
    first = model.config.quantization_config.layout
    replace_all(model, ToyInt8.of)
    save_checkpoint(model, tmp_path / "two")
    assert len(asked) == 2
    assert len(first) < len(load.load_model(tmp_path / "two").config.quantization_config.layout)
    model.save_pretrained(tmp_path / "three")
    assert len(asked) == 3, "without save_checkpoint transformers' own save reads it"


def test_saving_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(models.tiny("bert"), tmp_path / "out")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_the_model_can_be_used_on_after_saving(tmp_path: Path) -> None:
    model = models.tiny("bert")
    batch = models.inputs("bert")
    before = models.output(model, batch)
    save_checkpoint(model, tmp_path / "one")
    assert torch.equal(models.output(model, batch), before)
    int8(model)
    saved = save_checkpoint(model, tmp_path / "two")
    assert torch.equal(models.output(open_source(saved.path).load_model(), batch), models.output(model, batch))


def test_minilm_in_sentence_transformers(minilm_path: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    source = open_source(minilm_path)
    model = source.load_model()
    assert replace_all(model, ToyInt8.of, part="attention")
    saved = save_checkpoint(model, tmp_path / "out", source=source)
    sentences = ["A plane is taking off.", "Two dogs play in the snow.", "How do I list the files of a folder?"]
    first = SentenceTransformer(str(minilm_path), device="cpu").encode(sentences)
    second = SentenceTransformer(str(saved.path), device="cpu").encode(sentences)
    cosines = (first * second).sum(1)
    assert cosines.min() > 0.99
    assert cosines.max() < 1 - 1e-6
    assert saved.disk_bytes < source.disk_bytes - 5_000_000
