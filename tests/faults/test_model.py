"""F21 to F30, F35: a damaged or contradictory model is one typed error before anything is computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from compresskit.checkpoint import save, source
from compresskit.checkpoint.save import save_checkpoint
from compresskit.checkpoint.source import open_source
from compresskit.core import surgery
from compresskit.errors import CompressKitError, ModelError
from tests import models
from tests.checkpoint.toys import ToyInt8, ToyTable, replace_all
from tests.faults.conftest import Folder
from tests.faults.test_save import as_hub_cache, flip

NORM = "encoder.layer.1.output.LayerNorm.weight"


def refused(folder: Path, code: str, exit_code: int = 3) -> CompressKitError:
    """Opening and loading ``folder`` fails with ``code``."""
    with pytest.raises(CompressKitError) as raised:
        open_source(folder).load_model()
    assert (raised.value.code, raised.value.exit_code) == (code, exit_code), str(raised.value)
    assert raised.value.fix
    return raised.value


def test_the_undamaged_models_load(bert: Folder, gpt2: Folder, sharded: Folder) -> None:
    for folder in (bert, gpt2, sharded):
        opened = open_source(folder.path)
        assert opened.notices == []
        assert type(opened.load_model()).__name__ == opened.architecture


@pytest.mark.parametrize("where", ["0", "7", "8", "header-1", "half", "-1"])
def test_f21_cut_short(bert: Folder, where: str) -> None:
    content = bert.weights.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    size = {"header-1": header - 1, "half": len(content) // 2, "-1": len(content) - 1}.get(where)
    size = int(where) if size is None else size
    bert.weights.write_bytes(content[:size])
    error = refused(bert.path, "CK-M004")
    assert "model.safetensors" in error.where
    assert f"{size} bytes" in error.why
    assert "expected" in error.why


def test_f21_a_shard_cut_short(sharded: Folder) -> None:
    shard = sorted(sharded.path.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert shard.name in refused(sharded.path, "CK-M004").where


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_f22_a_flipped_bit_under_a_manifest(tmp_path: Path, bert: Folder, name: str) -> None:
    models.tokenizer().save_pretrained(bert.path)
    opened = open_source(bert.path)
    out = tmp_path / "out"
    save_checkpoint(opened.load_model(), out, source=opened)
    open_source(out)
    content = (out / name).read_bytes()
    place = content.index(b"1") if name.endswith(".json") else -1
    flip(out / name, place)
    with pytest.raises(ModelError) as raised:
        open_source(out)
    assert (raised.value.code, raised.value.exit_code) == ("CK-M016", 3)
    assert name in raised.value.what
    with pytest.raises(ModelError):
        save.verify(out)


def test_f22_a_flipped_bit_in_the_cache_of_the_hub(tmp_path: Path, bert: Folder) -> None:
    snapshot = as_hub_cache(bert.path, tmp_path / "models--a--b")
    open_source(snapshot).load_model()
    flip((snapshot / "model.safetensors").resolve(), -1)
    assert "the Hub" in refused(snapshot, "CK-M016").what


def test_f23_a_missing_tensor(bert: Folder) -> None:
    error = refused(bert.tensors(lambda tensors: tensors.pop(NORM)), "CK-M010")
    assert NORM in error.why


def test_f24_an_unexpected_tensor(bert: Folder) -> None:
    error = refused(bert.tensors(lambda tensors: tensors.update(adapter=torch.zeros(2))), "CK-M011")
    assert "adapter" in error.why


@pytest.mark.parametrize(
    ("family", "name"),
    [("bert", "embeddings.position_ids"), ("gpt2", "transformer.h.0.attn.bias"), ("gpt2", "h.1.attn.masked_bias")],
)
def test_f24_known_stale_buffers_are_no_error(bert: Folder, gpt2: Folder, family: str, name: str) -> None:
    folder = {"bert": bert, "gpt2": gpt2}[family]
    folder.tensors(lambda tensors: tensors.update({name: torch.zeros(1, 8)}))
    open_source(folder.path).load_model()


def test_f25_another_shape(bert: Folder) -> None:
    error = refused(bert.tensors(lambda tensors: tensors.update({NORM: torch.zeros(63)})), "CK-M012")
    assert NORM in error.why
    assert "[63]" in error.why
    assert "[64]" in error.why


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_f26_a_value_that_is_not_finite(bert: Folder, value: float) -> None:
    name = "encoder.layer.0.intermediate.dense.weight"

    def spoil(tensors: dict[str, Any]) -> None:
        tensors[name][3, 5] = tensors[name][7, 0] = value

    error = refused(bert.tensors(spoil), "CK-M014")
    assert f"{name}: 2 of 8192, first at [3, 5]" in error.why


def test_f26_a_model_that_became_nan_is_not_saved(tmp_path: Path, bert: Folder) -> None:
    model = open_source(bert.path).load_model()
    with torch.no_grad():
        model.get_parameter(NORM)[0] = float("nan")
    with pytest.raises(ModelError) as raised:
        save_checkpoint(model, tmp_path / "out")
    assert raised.value.code == "CK-M014"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert"]


@pytest.mark.parametrize("layers", [2, 4, 30])
def test_f27_another_number_of_layers(bert: Folder, layers: int) -> None:
    error = refused(bert.json(lambda config: config.update(num_hidden_layers=layers)), "CK-M013")
    assert "encoder.layer." in error.why


def test_f28_a_shard_is_missing(sharded: Folder) -> None:
    shard = sorted(sharded.path.glob("model-*.safetensors"))[0]
    shard.unlink()
    assert shard.name in refused(sharded.path, "CK-M005").why


def change_map(folder: Folder, change: Any) -> Path:
    return folder.json(lambda index: change(index["weight_map"]), "model.safetensors.index.json")


def test_f28_the_index_names_an_absent_file(sharded: Folder) -> None:
    change_map(sharded, lambda table: table.update({NORM: "model-99.safetensors"}))
    assert "model-99" in refused(sharded.path, "CK-M005").why


def test_f28_index_and_shards_disagree(sharded: Folder) -> None:
    def swap_two(table: dict[str, str]) -> None:
        first, last = min(table, key=table.__getitem__), max(table, key=table.__getitem__)
        table[first], table[last] = table[last], table[first]

    refused(change_map(sharded, swap_two), "CK-M005")


def test_f28_the_index_lacks_a_tensor(sharded: Folder) -> None:
    assert NORM in refused(change_map(sharded, lambda table: table.pop(NORM)), "CK-M005").why


def test_f28_two_shards_hold_one_tensor(sharded: Folder) -> None:
    save_file({NORM: torch.zeros(64)}, sharded.path / "extra.safetensors")
    change_map(sharded, lambda table: table.update({"made.up": "extra.safetensors"}))
    assert NORM in refused(sharded.path, "CK-M005").why


@pytest.mark.parametrize(
    "index", [[], {}, {"weight_map": {}}, {"weight_map": {"x": 3}}, {"weight_map": {"x": "y.bin"}}]
)
def test_f28_an_index_that_is_none(sharded: Folder, index: Any) -> None:
    (sharded.path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CompressKitError) as raised:
        open_source(sharded.path)
    assert raised.value.code in ("CK-M005", "CK-S003")


def test_f29_a_tie_survives_saving(tmp_path: Path, gpt2: Folder) -> None:
    model = open_source(gpt2.path).load_model()
    saved = save_checkpoint(model, tmp_path / "out")
    assert saved.native
    names = open_source(saved.path).tensors
    assert ("transformer.wte.weight" in names, "lm_head.weight" in names) == (True, False), "written once"
    again = open_source(saved.path).load_model()
    assert again.lm_head.weight is again.transformer.wte.weight


def test_f29_one_side_of_a_tie_cannot_be_replaced_alone(gpt2: Folder) -> None:
    model = open_source(gpt2.path).load_model()
    with pytest.raises(ModelError) as raised:
        surgery.replace(model, "transformer.wte", ToyTable.of(model.transformer.wte))
    assert raised.value.code == "CK-M032"
    assert "lm_head" in raised.value.what


def test_f29_both_sides_of_a_tie_are_replaced(tmp_path: Path, gpt2: Folder) -> None:
    model = open_source(gpt2.path).load_model()
    both = {"transformer.wte": ToyTable.of(model.transformer.wte), "lm_head": ToyInt8.of(model.lm_head)}
    surgery.replace_tied(model, both)
    saved = save_checkpoint(model, tmp_path / "out")
    again = open_source(saved.path).load_model()
    assert again.lm_head.codes is again.transformer.wte.codes
    batch = models.inputs("gpt2")
    assert torch.equal(models.output(model, batch), models.output(again, batch))
    assert open_source(saved.path).disk_report["weights"] < open_source(gpt2.path).disk_report["weights"] - 64 * 512 * 2


def test_f29_an_untied_pair_is_saved_with_the_config_that_says_so(tmp_path: Path, gpt2: Folder) -> None:
    model = open_source(gpt2.path).load_model()
    model.lm_head.weight = torch.nn.Parameter(model.transformer.wte.weight.detach() * 0.5)
    model.config.tie_word_embeddings = False
    saved = save_checkpoint(model, tmp_path / "out")
    batch = models.inputs("gpt2")
    assert torch.equal(models.output(model, batch), models.output(open_source(saved.path).load_model(), batch))
    assert json.loads((saved.path / "config.json").read_text())["tie_word_embeddings"] is False


def test_f29_a_broken_tie_that_the_config_does_not_admit_is_not_saved(tmp_path: Path, gpt2: Folder) -> None:
    model = open_source(gpt2.path).load_model()
    model.lm_head.weight = torch.nn.Parameter(model.transformer.wte.weight.detach() * 0.5)
    with pytest.raises(ModelError) as raised:
        save_checkpoint(model, tmp_path / "out")
    assert raised.value.code == "CK-M015"
    assert not (tmp_path / "out").exists()


def test_f30_config_says_tied_and_the_weights_differ(gpt2: Folder) -> None:
    gpt2.tensors(lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"] + 1}))
    error = refused(gpt2.path, "CK-M015")
    assert "lm_head.weight" in error.what
    assert "tie_word_embeddings" in error.fix


def test_f30_config_says_tied_and_both_copies_are_equal(gpt2: Folder) -> None:
    gpt2.tensors(lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"].clone()}))
    model = open_source(gpt2.path).load_model()
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("copied", [False, True])
def test_f30_config_says_untied_and_the_weights_are_one(gpt2: Folder, copied: bool) -> None:
    gpt2.json(lambda config: config.update(tie_word_embeddings=False))
    if copied:
        gpt2.tensors(lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"].clone()}))
    assert "tie_word_embeddings to true" in refused(gpt2.path, "CK-M015").fix


def test_f30_t5_has_three_names_for_one_table(tmp_path: Path) -> None:
    folder = Folder(models.write_checkpoint(models.tiny("t5", task="lm"), tmp_path / "t5", with_tokenizer=False))
    open_source(folder.path).load_model()
    folder.tensors(lambda tensors: tensors.update({"encoder.embed_tokens.weight": tensors["shared.weight"] + 1}))
    refused(folder.path, "CK-M015")


def test_t5_1_1_has_a_head_of_its_own(tmp_path: Path) -> None:
    made = models.tiny("t5", task="lm", tie_word_embeddings=False)
    surgery.untie(made, "lm_head.weight")
    with torch.no_grad():
        made.get_parameter("lm_head.weight").mul_(1.5)
    folder = models.write_checkpoint(made, tmp_path / "t5", with_tokenizer=False)
    loaded, batch = open_source(folder).load_model(), models.inputs("t5")
    assert torch.equal(models.output(loaded, batch), models.output(made, batch))


@pytest.mark.parametrize(
    ("settings", "found"),
    [({"quant_method": "gptq", "bits": 4}, "gptq"), ({"load_in_4bit": True}, "unnamed"), ("int8", "unnamed")],
)
def test_f35_quantized_by_others(bert: Folder, settings: Any, found: str) -> None:
    assert found in refused(bert.json(lambda config: config.update(quantization_config=settings)), "CK-M008").what


def test_f35_an_adapter(bert: Folder) -> None:
    (bert.path / "adapter_config.json").write_text("{}")
    assert "adapter" in refused(bert.path, "CK-M008").what


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors"])
def test_f35_gguf(bert: Folder, name: str) -> None:
    bert.weights.unlink()
    (bert.path / name).write_bytes(b"GGUF" + bytes(100))
    assert "GGUF" in refused(bert.path, "CK-M008").what


def test_f35_our_own_checkpoints_are_accepted(tmp_path: Path, gpt2: Folder) -> None:
    model = open_source(gpt2.path).load_model()
    assert replace_all(model, ToyInt8.of)
    save_checkpoint(model, tmp_path / "out")
    opened = open_source(tmp_path / "out")
    assert opened.compressed
    save_checkpoint(opened.load_model(), tmp_path / "again", source=opened)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()


def test_f36_a_model_without_values_is_not_saved(tmp_path: Path) -> None:
    model = models.tiny("bert")
    model.pooler.to("meta")
    with pytest.raises(ModelError) as raised:
        save_checkpoint(model, tmp_path / "out")
    assert raised.value.code == "CK-I016"


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda folder: shutil.rmtree(folder.path), "CK-M001"),
        (lambda folder: (folder.path / "config.json").unlink(), "CK-M002"),
        (lambda folder: folder.weights.unlink(), "CK-M003"),
        (lambda folder: (folder.path / "config.json").write_text("{"), "CK-M006"),
        (lambda folder: (folder.path / "config.json").write_text("[]"), "CK-M006"),
        (lambda folder: folder.json(lambda config: config.pop("model_type")), "CK-M006"),
        (lambda folder: folder.json(lambda config: config.update(architectures="BertModel")), "CK-M006"),
        (lambda folder: folder.json(lambda config: config.update(model_type="no-such-type")), "CK-M018"),
        (lambda folder: folder.json(lambda config: config.update(num_attention_heads=7)), "CK-M018"),
        (lambda folder: dangle(folder.path / "config.json"), "CK-M002"),
        (lambda folder: dangle(folder.weights), "CK-M005"),
        (lambda folder: dangle(folder.path / "README.md"), "CK-M002"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_incomplete_folders(bert: Folder, damage: Any, code: str) -> None:
    damage(bert)
    refused(bert.path, code)


def dangle(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")


def test_without_architectures_the_base_model_is_loaded(bert: Folder) -> None:
    bert.json(lambda config: config.pop("architectures"))
    opened = open_source(bert.path)
    assert opened.architecture == "AutoModel"
    assert type(opened.load_model()).__name__ == "BertModel"


def test_an_unreadable_folder_is_a_typed_error(bert: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(source, "locate", fail)
    with pytest.raises(CompressKitError) as raised:
        open_source(bert.path)
    assert (raised.value.code, raised.value.exit_code) == ("CK-I008", 4)
