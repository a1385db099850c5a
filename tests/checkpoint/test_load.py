"""A compressed model, saved and loaded by transformers' own means, is the same model."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors import safe_open
from torch import nn

from compresskit.checkpoint.load import LayoutLoader, attach, load_model
from compresskit.core import anatomy, surgery
from compresskit.errors import ModelError
from tests import models
from tests.checkpoint import edits
from tests.checkpoint.toys import ToyExactTable, ToyInt8, ToyLowRank, put, replace_all

# Every edit on one encoder and one decoder, the telling ones on models built otherwise, and a few on their likes.
FEW = ("int8_in_low_rank", "uneven_heads", "tables", "window")
TELLING = (*FEW, "shared_layers", "dropped_by_hand", "half_precision")
EDITS = {"bert": tuple(edits.ALL), "gpt2": tuple(edits.ALL), "llama": TELLING, "albert": TELLING, "t5": TELLING}
FAMILIES = ("bert", "roberta", "distilbert", "albert", "gpt2", "llama", "qwen3", "t5")


def same_bytes(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


CASES = [(name, edit) for name in FAMILIES for edit in EDITS.get(name, FEW) if edits.applies(edit, name)]


@pytest.mark.parametrize(("name", "edit"), CASES)
def test_reload_and_resave_are_exact(name: str, edit: str, tmp_path: Path) -> None:
    model = models.tiny(name, task="lm", tie_word_embeddings=True)
    edits.ALL[edit](model)
    attach(model)
    batch = models.inputs(name, padded=True)
    expected = models.output(model, batch)

    model.save_pretrained(tmp_path / "one")
    loaded, report = type(model).from_pretrained(tmp_path / "one", output_loading_info=True)
    loaded.save_pretrained(tmp_path / "two")
    again = load_model(tmp_path / "two")

    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(models.output(loaded, batch), expected)
    assert torch.equal(models.output(again, batch), expected)
    assert models.tied(loaded) == models.tied(again) == models.tied(model)
    assert same_bytes(tmp_path / "one", tmp_path / "two")
    assert not loaded.training
    trainable = {n: p.requires_grad for n, p in model.named_parameters() if not p.is_floating_point()}
    assert trainable.items() <= {n: p.requires_grad for n, p in loaded.named_parameters()}.items()


def test_only_changed_models_need_compresskit(tmp_path: Path) -> None:
    for name in FAMILIES:
        model = models.tiny(name, task="lm")
        if edits.applies("dropped", name):
            edits.dropped(model)
        assert attach(model) is None
        assert not hasattr(model.config, "quantization_config")
        model.save_pretrained(tmp_path / name)
        assert "quantization_config" not in json.loads((tmp_path / name / "config.json").read_text())
    changed = models.tiny("bert")
    edits.uneven_heads(changed)
    assert attach(changed)


def test_the_file_has_no_metadata_but_the_format(tmp_path: Path) -> None:
    model = models.tiny("bert")
    edits.low_rank(model)
    attach(model)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shared_layers_are_stored_once(tmp_path: Path) -> None:
    model = models.tiny("bert")
    model.save_pretrained(tmp_path / "stock")
    edits.shared_layers(model)
    attach(model)
    model.save_pretrained(tmp_path / "shared")
    block = sum(p.numel() * 4 for p in model.encoder.layer[0].parameters())
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("stock", "shared")]
    assert sizes[0] - sizes[1] == pytest.approx(block, rel=0.1)


@pytest.mark.parametrize("size", ["40KB", "200KB"])
def test_sharded_files(size: str, tmp_path: Path) -> None:
    model = models.tiny("gpt2", task="lm")
    edits.int8_in_low_rank(model)
    edits.shared_layers(model)
    attach(model)
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    batch = models.inputs("gpt2")
    assert torch.equal(models.output(load_model(tmp_path), batch), models.output(model, batch))


@pytest.mark.parametrize("name", ["bert", "t5"])
@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_device_map(name: str, device_map: str, tmp_path: Path) -> None:
    model = models.tiny(name, task="lm")
    edits.tables(model)
    edits.int8(model)
    attach(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, device_map=device_map)
    assert torch.equal(models.output(loaded, models.inputs(name)), models.output(model, models.inputs(name)))


def test_deepcopy_and_training_mode(tmp_path: Path) -> None:
    model = models.tiny("llama", task="lm")
    edits.int8_in_low_rank(model)
    attach(model)
    model.save_pretrained(tmp_path / "one")
    twin = copy.deepcopy(load_model(tmp_path / "one")).train()
    attach(twin)
    twin.save_pretrained(tmp_path / "two")
    assert same_bytes(tmp_path / "one", tmp_path / "two")


def test_scales_keep_their_type(tmp_path: Path) -> None:
    model = models.tiny("bert")
    edits.int8(model)
    attach(model)
    model.save_pretrained(tmp_path)
    scale = model.encoder.layer[0].attention.self.query.scale
    for loaded in (
        load_model(tmp_path, dtype=torch.bfloat16),
        load_model(tmp_path).to(torch.bfloat16),
        load_model(tmp_path).bfloat16(),
    ):
        layer = loaded.encoder.layer[0].attention.self.query
        assert isinstance(layer, ToyInt8)
        assert loaded.encoder.layer[0].output.LayerNorm.weight.dtype == layer.bias.dtype == torch.bfloat16
        assert torch.equal(layer.scale, scale)
        assert layer.codes.dtype == torch.int8
    assert load_model(tmp_path).half().float().encoder.layer[0].attention.self.query.scale.dtype == torch.float32


def test_the_type_of_the_model_is_not_that_of_its_first_scale(tmp_path: Path) -> None:
    model = models.tiny("gpt2").to(torch.bfloat16)
    put(model, "wte", ToyExactTable.of(model.wte))
    assert model.dtype == torch.float32
    attach(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["dtype"] == "bfloat16"
    loaded = hf.AutoModel.from_pretrained(tmp_path)
    assert loaded.h[0].ln_1.weight.dtype == torch.bfloat16
    assert torch.equal(models.output(loaded, models.inputs("gpt2")), models.output(model, models.inputs("gpt2")))


def test_edited_by_hand_after_a_reload(tmp_path: Path) -> None:
    model = models.tiny("bert", task="classifier")
    edits.low_rank(model)
    attach(model)
    model.save_pretrained(tmp_path / "one")
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    low_rank = loaded.bert.encoder.layer[0].intermediate.dense
    assert isinstance(low_rank, ToyLowRank)
    low_rank.up = ToyInt8.of(low_rank.up)
    put(loaded, "bert.encoder.layer.1.output.dense", nn.Linear(models.WIDTH, models.HIDDEN))
    loaded.bert.encoder.layer = nn.ModuleList([loaded.bert.encoder.layer[index] for index in (0, 1)])
    loaded.classifier = ToyInt8.of(loaded.classifier)
    batch = models.inputs("bert")
    expected = models.output(loaded, batch)
    loaded.save_pretrained(tmp_path / "two")
    assert torch.equal(models.output(load_model(tmp_path / "two"), batch), expected)


def test_edited_back_to_stock_and_on(tmp_path: Path) -> None:
    model = models.tiny("bert")
    stock = copy.deepcopy(model)
    edits.int8(model)
    attach(model)
    model.save_pretrained(tmp_path / "one")
    loaded = load_model(tmp_path / "one")
    for path, module in stock.named_modules():
        if type(module) is nn.Linear and "encoder" in path:
            put(loaded, path, copy.deepcopy(module))
    loaded.save_pretrained(tmp_path / "stock")
    assert "quantization_config" not in json.loads((tmp_path / "stock" / "config.json").read_text())
    assert torch.equal(
        models.output(hf.BertModel.from_pretrained(tmp_path / "stock"), models.inputs("bert")),
        models.output(stock, models.inputs("bert")),
    )
    edits.low_rank(loaded)
    loaded.save_pretrained(tmp_path / "three")
    assert isinstance(load_model(tmp_path / "three").encoder.layer[0].output.dense, ToyLowRank)


@pytest.mark.parametrize("asked", ["eager", "sdpa", None])
@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_replaced_attention_stays_whatever_is_asked(name: str, asked: str | None, tmp_path: Path) -> None:
    model = models.tiny(name)
    edits.window(model)
    attach(model)
    model.save_pretrained(tmp_path)
    loaded = hf.AutoModel.from_pretrained(tmp_path, attn_implementation=asked)
    if asked:
        loaded.set_attn_implementation(asked)
    batch = models.inputs(name)
    assert torch.allclose(models.output(loaded, batch), models.output(model, batch), atol=1e-5)
    assert not torch.allclose(models.output(loaded, batch), models.output(models.tiny(name), batch), atol=1e-2)
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]["layout"]


def test_generation_of_a_reloaded_model(tmp_path: Path) -> None:
    model = models.tiny("llama", task="lm")
    edits.dropped_by_hand(model)
    edits.int8_in_low_rank(model)
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    attach(model)
    model.save_pretrained(tmp_path)
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = {"input_ids": torch.tensor([[7, 8, 9, 10]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    assert torch.equal(loaded.generate(**prompt, **options), model.generate(**prompt, **options))


def test_pipeline(tmp_path: Path) -> None:
    model = models.tiny("bert", task="classifier")
    edits.int8(model)
    attach(model)
    models.write_checkpoint(model, tmp_path)
    classify = hf.pipeline("text-classification", model=str(tmp_path), device="cpu")
    assert isinstance(classify.model.bert.encoder.layer[0].output.dense, ToyInt8)
    assert classify("the small cat sat")[0]["label"].startswith("LABEL_")


def test_sentence_transformers(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    model = models.tiny("bert")
    edits.uneven_heads(model)
    edits.int8(model)
    attach(model)
    models.write_checkpoint(model, tmp_path)
    encoder = library.SentenceTransformer(str(tmp_path), device="cpu")
    text = encoder.tokenize(["a good film"])
    expected = models.output(model, {"input_ids": text["input_ids"], "attention_mask": text["attention_mask"]})
    assert torch.allclose(torch.from_numpy(encoder.encode(["a good film"])), expected.mean(1), atol=1e-6)


def saved(tmp_path: Path) -> Path:
    model = models.tiny("bert")
    edits.low_rank(model)
    attach(model)
    model.save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["quantization_config"].update(changes)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"format_version": 2}, "CK-L001"),
        ({"format_version": "1"}, "CK-L001"),
        ({"mystery": 1}, "CK-L002"),
        ({"guard": "../x"}, "CK-L002"),
        ({"guard": ""}, "CK-L002"),
        ({"guard": "embeddings.nothing"}, "CK-L004"),
        ({"dtype": "object"}, "CK-L002"),
        ({"layout": {"op": "drop"}}, "CK-L002"),
        ({"layout": [{"op": "replace", "path": "encoder", "kind": "no_such", "arguments": {}}]}, "CK-L003"),
        ({"layout": [{"op": "drop", "path": "encoder.layer.9"}]}, "CK-L004"),
    ],
)
def test_bad_configs_are_refused(changes: dict[str, object], code: str, tmp_path: Path) -> None:
    rewrite(saved(tmp_path), **changes)
    with pytest.raises(ModelError) as caught:
        hf.AutoModel.from_pretrained(tmp_path)
    assert caught.value.code == code


def test_missing_factors_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = saved(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.layer.1.output.dense.up.weight"]
    save_file(tensors, path, {"format": "pt"})
    for cls in (hf.AutoModel, hf.AutoModelForSequenceClassification):
        with pytest.raises(ModelError, match=r"up\.weight") as caught:
            cls.from_pretrained(tmp_path)
        assert caught.value.code == "CK-L005"


def test_load_model_is_strict(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    models.tiny("bert").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for name, change in {
        "missing": lambda t: t.pop("encoder.layer.1.output.dense.weight"),
        "left over": lambda t: t.update(extra=torch.zeros(1)),
        "shape": lambda t: t.update({"encoder.layer.1.output.dense.bias": torch.zeros(3)}),
    }.items():
        changed = dict(tensors)
        change(changed)
        save_file(changed, path, {"format": "pt"})
        with pytest.raises(ModelError, match=name) as caught:
            load_model(tmp_path)
        assert caught.value.code == "CK-L040"


def test_load_model_says_what_is_not_there(tmp_path: Path) -> None:
    for folder, why in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "is missing")):
        with pytest.raises(ModelError, match="can't be loaded") as caught:
            load_model(folder)
        assert (caught.value.code, caught.value.where) == ("CK-L040", str(folder))
        assert why in caught.value.why


def test_load_model_takes_classes(tmp_path: Path) -> None:
    model = models.tiny("bert", task="classifier")
    model.save_pretrained(tmp_path)
    assert isinstance(load_model(tmp_path), hf.BertForSequenceClassification)
    assert isinstance(load_model(tmp_path, auto_class="AutoModel"), hf.BertModel)
    assert isinstance(load_model(tmp_path, auto_class=hf.BertModel), hf.BertModel)
    assert load_model(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path, auto_class="BertForNothing")
    assert caught.value.code == "CK-L042"


def test_the_loader_lets_models_be_trained() -> None:
    from compresskit.checkpoint.load import CompressedConfig

    loader = LayoutLoader(CompressedConfig([], guard="x"), pre_quantized=True)
    assert loader.is_trainable
    assert loader.is_qat_trainable
    assert loader.is_serializable()


def test_config_expresses_uniform_changes(tmp_path: Path) -> None:
    model = models.tiny("llama", task="lm")
    body = anatomy.of(model)
    for ffn in body.ffns:
        surgery.keep_neurons(model, ffn, torch.arange(64))
    surgery.sync_config(model)
    assert attach(model) is None
    model.save_pretrained(tmp_path)
    assert torch.equal(
        models.output(load_model(tmp_path), models.inputs("llama")), models.output(model, models.inputs("llama"))
    )


def test_parameters_are_stored_in_the_order_that_computes(tmp_path: Path) -> None:
    """A transposed weight rounds otherwise; attach makes it what the file will hold."""
    model = models.tiny("gpt2").half()
    replace_all(model, ToyInt8.of)
    assert not model.h[0].mlp.c_fc.codes.is_contiguous()
    attach(model)
    model.save_pretrained(tmp_path)
    batch = models.inputs("gpt2")
    assert torch.equal(models.output(load_model(tmp_path), batch), models.output(model, batch))
