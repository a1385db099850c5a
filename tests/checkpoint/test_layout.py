"""What the layout says of a model, what it refuses, and that a hostile one does nothing."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn.utils import parametrize

from compresskit.checkpoint.addresses import address_of, path_of
from compresskit.checkpoint.diff import read_operations
from compresskit.checkpoint.layout import read_layout, replay, summary
from compresskit.checkpoint.operations import check
from compresskit.checkpoint.skeleton import empty_model, picture, tie_groups
from compresskit.errors import ModelError
from tests import models
from tests.checkpoint import edits
from tests.checkpoint.toys import ToyInt8, ToyLowRank


@pytest.mark.parametrize("task", ["base", "classifier", "lm"])
def test_stock_models_have_no_layout(family: str, task: models.Task) -> None:
    if task in models.tasks(family):
        assert read_layout(models.tiny(family, task=task)) == []


@pytest.mark.parametrize("tied", [True, False])
def test_a_stock_model_that_ties_or_doesnt(tied: bool) -> None:
    assert read_layout(models.tiny("gpt2", task="lm", tie_word_embeddings=tied)) == []


def test_untied_by_other_values_is_left_to_the_stock_loader() -> None:
    model = models.tiny("gpt2", task="lm")
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() + 1)
    assert read_layout(model) == []
    model.lm_head.weight = nn.Parameter(model.transformer.wte.weight.detach().clone())
    assert read_layout(model) == [{"op": "untie", "target": "/lm_head.weight"}]


def test_operations_of_each_sort() -> None:
    model = models.tiny("bert", task="classifier")
    layers = model.bert.encoder.layer
    layers[0].intermediate.dense = ToyLowRank.of(layers[0].intermediate.dense, 4)
    layers[0].intermediate.dense.up = ToyInt8.of(layers[0].intermediate.dense.up)
    layers[0].output.dense = nn.Linear(models.WIDTH, models.HIDDEN, bias=False)
    layers[1].attention.self.scaling = 0.5
    layers[2].output.dense.weight = layers[1].output.dense.weight
    model.classifier = ToyInt8.of(model.classifier)
    model.bert.encoder.layer = nn.ModuleList([layers[0], layers[1], layers[2]])
    edits.window(model)
    layout = read_layout(model)
    window = {"kind": "window", "window": 3, "global_tokens": 1}
    assert [operation for operation in layout if operation["op"] != "attention"] == [
        {
            "op": "replace",
            "path": "encoder.layer.0.intermediate.dense",
            "kind": "toy_low_rank",
            "arguments": {"in_features": 64, "out_features": 128, "rank": 4, "bias": True},
        },
        {
            "op": "replace",
            "path": "encoder.layer.0.intermediate.dense.up",
            "kind": "toy_int8",
            "arguments": {"in_features": 4, "out_features": 128, "bias": True},
        },
        {
            "op": "resize",
            "path": "encoder.layer.0.output.dense",
            "class": "Linear",
            "arguments": {"in_features": 128, "out_features": 64, "bias": False},
        },
        {"op": "attrs", "path": "encoder.layer.1.attention.self", "values": {"scaling": 0.5}},
        {
            "op": "replace",
            "path": "/classifier",
            "kind": "toy_int8",
            "arguments": {"in_features": 64, "out_features": 3, "bias": True},
        },
        {"op": "tie", "source": "encoder.layer.1.output.dense.weight", "target": "encoder.layer.2.output.dense.weight"},
    ]
    assert [operation for operation in layout if operation["op"] == "attention"] == [
        {"op": "attention", "path": f"encoder.layer.{number}.attention.self", "settings": window} for number in range(3)
    ]
    assert summary(layout) == {
        "attention": 3, "attrs": 1, "resize": 1, "tie": 1, "toy_int8": 2, "toy_low_rank": 1,
    }  # fmt: skip


def test_dropped_blocks_and_modules() -> None:
    model = models.tiny("bert")
    edits.dropped_by_hand(model)
    model.pooler = None
    assert read_layout(model) == [
        {"op": "drop", "path": "pooler"},
        {"op": "drop", "path": "encoder.layer.2"},
        {"op": "attrs", "path": "encoder.layer.1.attention.self", "values": {"layer_idx": 2}},
    ]


def test_raw_parameters() -> None:
    model = models.tiny("llama")
    norm = model.layers[1].input_layernorm
    norm.weight = nn.Parameter(norm.weight.detach()[:1].clone())
    model.layers[0].mlp.down_proj.bias = nn.Parameter(torch.zeros(models.HIDDEN))
    assert read_layout(model) == [
        {
            "op": "resize",
            "path": "layers.0.mlp.down_proj",
            "class": "Linear",
            "arguments": {"in_features": 128, "out_features": 64, "bias": True},
        },
        {"op": "resize", "path": "layers.1.input_layernorm.weight", "class": "Parameter", "arguments": {"shape": [1]}},
    ]


def test_a_module_where_the_stock_model_has_none() -> None:
    """T5's second layer may need the table of positions that only the first has."""
    model = models.tiny("t5encoder")
    attention = model.encoder.block[1].layer[0].SelfAttention
    attention.relative_attention_bias = nn.Embedding(32, 4)
    attention.has_relative_attention_bias = True
    layout = read_layout(model)
    assert layout[0] == {
        "op": "attrs",
        "path": "encoder.block.1.layer.0.SelfAttention",
        "values": {"has_relative_attention_bias": True},
    }
    assert layout[1]["new"] is True
    assert layout[1]["path"].endswith("relative_attention_bias")


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("edit", ["uneven_heads", "int8_in_low_rank", "shared_layers", "tables", "dropped_by_hand"])
def test_replay_gives_the_same_picture(name: str, edit: str) -> None:
    model = models.tiny(name, task="lm")
    edits.ALL[edit](model)
    layout = json.loads(json.dumps(read_layout(model)))
    again = empty_model(model)
    with torch.device("meta"):
        changed = replay(again, layout)
    assert len(changed) == len(layout) > 0
    assert picture(again, as_loaded=True) == picture(model)


def test_verification_notices_what_the_reader_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.tiny("bert")
    edits.int8(model)
    operations, apart = read_operations(model)
    monkeypatch.setattr("compresskit.checkpoint.layout.read_operations", lambda _: (operations[:-1], apart))
    with pytest.raises(ModelError) as caught:
        read_layout(model)
    assert caught.value.code == "CK-L020"
    assert caught.value.where == operations[-1]["path"]


def wrong_class(model: Any) -> None:
    model.encoder.layer[0].attention = nn.Bilinear(2, 2, 2)


def more_blocks(model: Any) -> None:
    model.encoder.layer.append(copy.deepcopy(model.encoder.layer[0]))


def other_function(model: Any) -> None:
    model.encoder.layer[0].intermediate.intermediate_act_fn = nn.ReLU()


def object_attribute(model: Any) -> None:
    model.encoder.layer[0].attention.self.num_attention_heads = object()


def extra_parameter(model: Any) -> None:
    model.encoder.layer[1].output.register_parameter("gain", nn.Parameter(torch.ones(3)))


def resized_buffer(model: Any) -> None:
    model.embeddings.position_ids = torch.arange(7)[None]


def parametrized(model: Any) -> None:
    parametrize.register_parametrization(model.encoder.layer[1].output.dense, "weight", nn.Identity())


def mixed_types(model: Any) -> None:
    model.encoder.layer[1].output.dense.half()


def broken_config(model: Any) -> None:
    model.config.hidden_act = "no_such_activation"


def infinite(model: Any) -> None:
    model.encoder.layer[0].output.LayerNorm.eps = float("inf")


@pytest.mark.parametrize(
    ("edit", "code", "where"),
    [
        (wrong_class, "CK-L010", "encoder.layer.0.attention"),
        (more_blocks, "CK-L010", "encoder.layer"),
        (other_function, "CK-L010", "encoder.layer.0.intermediate.intermediate_act_fn"),
        (object_attribute, "CK-L011", "encoder.layer.0.attention.self"),
        (infinite, "CK-L011", "encoder.layer.0.output.LayerNorm"),
        (extra_parameter, "CK-L012", "encoder.layer.1.output.gain"),
        (resized_buffer, "CK-L012", "embeddings.position_ids"),
        (parametrized, "CK-L010", "encoder.layer.1.output.dense"),
        (mixed_types, "CK-L020", "encoder.layer.1.output.dense.weight"),
        (broken_config, "CK-L021", ""),
    ],
)
def test_what_cant_be_described_is_refused_by_name(edit: Any, code: str, where: str) -> None:
    model = models.tiny("bert")
    edit(model)
    with pytest.raises(ModelError) as caught:
        read_layout(model)
    assert caught.value.code == code
    assert caught.value.where == where
    assert caught.value.fix


class WithFunction(hf.BertModel):
    """A model that keeps its activation as a plain function."""

    def __init__(self, config: hf.BertConfig) -> None:
        super().__init__(config)
        self.activation = nn.functional.gelu


def test_a_changed_function_is_refused() -> None:
    model = WithFunction(models.config("bert"))
    assert read_layout(model) == []
    model.activation = nn.functional.relu
    with pytest.raises(ModelError, match="activation") as caught:
        read_layout(model)
    assert caught.value.code == "CK-L011"


def test_runtime_attributes_are_no_structure() -> None:
    model = models.tiny("bert").train()
    model.activation_checkpointing_enable()
    model.is_parallelizable = True
    assert read_layout(model) == []


HOSTILE: list[Any] = [
    "drop everything",
    {"op": "drop"},
    ["drop"],
    [{"op": "exec", "path": "encoder"}],
    [{"op": "drop"}],
    [{"op": "drop", "path": "encoder", "more": 1}],
    [{"op": "drop", "path": 3}],
    [{"op": "drop", "path": "encoder.layer.0; import os"}],
    [{"op": "drop", "path": "../encoder"}],
    [{"op": "attrs", "path": "", "values": ["x"]}],
    [{"op": "replace", "path": "pooler", "kind": "toy_int8", "arguments": None}],
    [{"op": "tie", "source": "a b", "target": "c"}],
    [{"op": None}],
    [{"op": ["drop"], "path": ""}],
]


@pytest.mark.parametrize("layout", HOSTILE, ids=range(len(HOSTILE)))
def test_malformed_layouts(layout: Any) -> None:
    with pytest.raises(ModelError) as caught:
        check(layout)
    assert caught.value.code == "CK-L002"


MISFITS: list[dict[str, Any]] = [
    {"op": "drop", "path": "encoder.layer.9"},
    {"op": "drop", "path": "encoder.layer.0.nothing"},
    {"op": "drop", "path": "nothing"},
    {"op": "attrs", "path": "encoder", "values": {"forward": "x"}},
    {"op": "attrs", "path": "encoder", "values": {"__class__": "x"}},
    {"op": "attrs", "path": "encoder", "values": {"_modules": None}},
    {"op": "attrs", "path": "encoder", "values": {"training": True}},
    {"op": "attrs", "path": "encoder", "values": {"config": None}},
    {"op": "attrs", "path": "pooler.dense", "values": {"in_features": {"a": 1}}},
    {"op": "resize", "path": "pooler.dense", "class": "Bilinear", "arguments": {}},
    {"op": "resize", "path": "pooler.dense", "class": "Linear", "arguments": {"in_features": -1, "out_features": 1}},
    {"op": "resize", "path": "pooler.dense", "class": "Linear", "arguments": {"os.system": "true"}},
    {"op": "resize", "path": "pooler.dense.weight", "class": "Parameter", "arguments": {"shape": [-1]}},
    {"op": "resize", "path": "pooler.dense.weight", "class": "Parameter", "arguments": {"shape": ["a"]}},
    {"op": "resize", "path": "pooler.dense.weight", "class": "Parameter", "arguments": {}},
    {"op": "resize", "path": "pooler.dense.forward", "class": "Parameter", "arguments": {"shape": [1]}},
    {"op": "resize", "path": "pooler.dense", "class": "Linear", "arguments": {}, "new": True},
    {"op": "resize", "path": "pooler.forward", "class": "Identity", "arguments": {}, "new": True},
    {"op": "replace", "path": "pooler.dense", "kind": "toy_int8", "arguments": {"in_features": "x"}},
    {"op": "tie", "source": "pooler.dense.weight", "target": "pooler.dense.bias"},
    {"op": "tie", "source": "pooler.dense.weight", "target": "pooler.dense.forward"},
    {"op": "untie", "target": "encoder.layer.9.x"},
    {"op": "untie", "target": "pooler.dense.weight"},
]


@pytest.mark.parametrize("operation", MISFITS, ids=lambda operation: f"{operation['op']}-{operation.get('path', '')}")
def test_operations_that_dont_fit(operation: dict[str, Any]) -> None:
    model = empty_model(models.tiny("bert"))
    before = picture(model)
    with torch.device("meta"), pytest.raises(ModelError) as caught:
        replay(model, [operation])
    assert caught.value.code == "CK-L004"
    assert picture(model) == before


def test_unknown_kinds_and_bad_attention() -> None:
    model = empty_model(models.tiny("bert"))
    with pytest.raises(ModelError) as caught:
        replay(model, [{"op": "replace", "path": "pooler", "kind": "os.system", "arguments": {}}])
    assert caught.value.code == "CK-L003"
    with pytest.raises(ModelError):
        replay(model, [{"op": "attention", "path": "encoder.layer.0.attention.self", "settings": {"kind": "x"}}])


def test_parts_that_another_class_lacks_are_skipped_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    layout = [
        {"op": "attrs", "path": "encoder.layer.0.output.LayerNorm", "values": {"eps": 0.5}},
        {"op": "attrs", "path": "/", "values": {"num_labels": 2}},
        {"op": "drop", "path": "/classifier"},
    ]
    base = empty_model(models.tiny("bert"))
    with pytest.raises(ModelError) as caught:
        replay(base, layout)
    assert caught.value.code == "CK-L004"
    base = empty_model(models.tiny("bert"))
    assert replay(base, layout, partial=True) == ["encoder.layer.0.output.LayerNorm"]
    assert "BertModel has no classifier, head" in caplog.text
    assert base.encoder.layer[0].output.LayerNorm.eps == 0.5
    with pytest.raises(ModelError) as caught:
        replay(base, [{"op": "drop", "path": "encoder.layer.9"}], partial=True)
    assert caught.value.code == "CK-L004"


def test_addresses() -> None:
    base, classifier = models.tiny("bert"), models.tiny("bert", task="classifier")
    encoder = models.tiny("t5encoder")
    whole, inside = models.tiny("t5", task="lm"), models.tiny("t5", task="classifier")
    assert address_of(base, "encoder.layer") == address_of(classifier, "bert.encoder.layer") == "encoder.layer"
    assert address_of(classifier, "bert") == address_of(base, "") == ""
    assert address_of(classifier, "") == "/"
    assert address_of(classifier, "classifier") == "/classifier"
    assert path_of(classifier, "encoder.layer") == "bert.encoder.layer"
    assert path_of(classifier, "") == "bert"
    assert path_of(base, "/classifier") is path_of(base, "/") is None
    assert path_of(encoder, "decoder.block.0") is None
    assert path_of(inside, "decoder.block.0") == "transformer.decoder.block.0"
    assert path_of(whole, "lm_head") == "lm_head"
    assert path_of(inside, "lm_head") is None


def test_tie_groups_follow_both_objects_and_the_table() -> None:
    model = models.tiny("gpt2", task="lm")
    empty = empty_model(model)
    group = frozenset({"lm_head.weight", "transformer.wte.weight"})
    assert group in tie_groups(model, known=False)
    assert group not in tie_groups(empty, known=False)
    assert group in tie_groups(empty)
    assert group not in tie_groups(empty, apart=[group])
