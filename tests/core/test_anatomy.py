from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import nn

from compresskit.core import anatomy, surgery
from compresskit.core.weights import matrices, view
from compresskit.errors import ModelError
from tests import models

HEADS = {"llama": (8, 2, 8), "qwen2": (8, 2, 8), "qwen3": (8, 2, 16)}
GATED = ("llama", "qwen2", "qwen3")


def test_every_matrix_of_a_block_has_its_place(family: str) -> None:
    model = models.tiny(family)
    for block in anatomy.of(model).blocks:
        parts = [path for attention in block.attentions for path in attention.members]
        parts += [path for ffn in block.ffns for path in ffn.members]
        assert len(parts) == len(set(parts))
        assert set(parts) == {item.path for item in matrices(model, block.path)}


def test_heads_and_rows(family: str) -> None:
    model = models.tiny(family)
    heads, kv_heads, head_dim = HEADS.get(family, (4, 4, 16))
    for part in anatomy.of(model).attentions:
        assert (part.heads, part.kv_heads, part.head_dim) == (heads, kv_heads, head_dim)
        assert part.query.stop - part.query.start == heads * head_dim
        for rows in (part.key, part.value):
            assert rows.stop - rows.start == kv_heads * head_dim
            assert view(model, rows.path).out_features >= rows.stop
        assert view(model, part.output).in_features == heads * head_dim
        assert hasattr(model.get_submodule(part.path), "config"), "the module that calls the attention function"
        for attribute, what in part.attributes.items():
            value = {"heads": heads, "inner": heads * head_dim, "groups": heads // kv_heads}[what]
            assert getattr(model.get_submodule(part.path), attribute) == value


def test_queries_keys_and_values_are_what_they_are_called() -> None:
    """Of GPT-2's one matrix for all three, the rows are the right ones: silencing the keys leaves values alone."""
    model = models.tiny("gpt2")
    part = anatomy.of(model).attentions[0]
    assert part.query.path == part.key.path == part.value.path
    value = view(model, part.value.path).weight[part.value.start : part.value.stop].clone()
    batch = models.inputs("gpt2")
    fused = model.get_submodule(part.query.path)
    with torch.no_grad():
        hidden = model.h[0].ln_1(model.wte(batch["input_ids"]) + model.wpe(torch.arange(12)))
        third = fused(hidden).split(models.HIDDEN, dim=2)[2]
        bias = fused.bias[part.value.start : part.value.stop]
        assert torch.allclose(nn.functional.linear(hidden, value, bias), third, atol=1e-5)


def test_feed_forward_networks(family: str) -> None:
    model = models.tiny(family)
    for ffn in anatomy.of(model).ffns:
        assert ffn.width == models.WIDTH
        assert len(ffn.inputs) == (2 if family in GATED else 1)
        assert [view(model, path).out_features for path in ffn.inputs] == [models.WIDTH] * len(ffn.inputs)
        assert view(model, ffn.output).in_features == models.WIDTH
    if family in GATED:
        assert anatomy.of(model).ffns[0].inputs[0].endswith("gate_proj"), "the gate comes first"


def test_a_gated_t5() -> None:
    model = models.tiny("t5", feed_forward_proj="gated-gelu")
    ffn = anatomy.of(model).ffns[0]
    assert [path.rpartition(".")[2] for path in ffn.inputs] == ["wi_0", "wi_1"]


def test_direction_of_attention(family: str) -> None:
    body = anatomy.of(models.tiny(family))
    assert body.causal == (family in models.DECODERS)
    assert body.encoder_decoder == (family == "t5")
    for part in body.attentions:
        decoder = family in models.DECODERS or part.path.startswith("decoder")
        assert part.causal == (decoder and not part.cross)
        assert part.cross == ("EncDecAttention" in part.path)


def test_cross_attention_of_bert_and_gpt2() -> None:
    for name, model in (
        ("bert", models.tiny("bert", is_decoder=True, add_cross_attention=True)),
        ("gpt2", models.tiny("gpt2", add_cross_attention=True)),
    ):
        block = anatomy.of(model).blocks[0]
        assert [part.cross for part in block.attentions] == [False, True], name
        assert [part.causal for part in block.attentions] == [True, False], name
        named = {path for part in (*block.attentions, *block.ffns) for path in part.members}
        assert named == {item.path for item in matrices(model, block.path)}


def test_t5_heads_of_a_stack_belong_together() -> None:
    body = anatomy.of(models.tiny("t5"))
    groups: dict[str | None, list[str]] = {}
    for part in body.attentions:
        groups.setdefault(part.group, []).append(part.path)
    assert {group: len(paths) for group, paths in groups.items()} == {
        "encoder self-attention heads": 3,
        "decoder self-attention heads": 3,
        "decoder cross-attention heads": 3,
    }
    with_table = [part.path for part in body.attentions if part.head_tables]
    assert with_table == ["encoder.block.0.layer.0.SelfAttention", "decoder.block.0.layer.0.SelfAttention"]
    assert [block.pinned is not None for block in body.blocks] == [True, False, False] * 2


def test_albert_runs_one_block_many_times() -> None:
    body = anatomy.of(models.tiny("albert"))
    assert [stack.repeats for stack in body.stacks] == [3]
    assert len(body.blocks) == 1
    assert body.blocks[0].pinned
    several = anatomy.of(models.tiny("albert", num_hidden_layers=4, num_hidden_groups=2, inner_group_num=2))
    assert [len(stack.blocks) for stack in several.stacks] == [2, 2]
    assert [stack.repeats for stack in several.stacks] == [2, 2]


@pytest.mark.parametrize("task", ["base", "classifier", "lm"])
def test_the_prefix_leads_to_the_base_model(family: str, task: models.Task) -> None:
    if task not in models.tasks(family):
        return
    model = models.tiny(family, task=task)
    body = anatomy.of(model)
    base = models.tiny(family)
    assert [path.removeprefix(body.prefix) for path in (block.path for block in body.blocks)] == [
        block.path for block in anatomy.of(base).blocks
    ]
    for block in body.blocks:
        assert isinstance(model.get_submodule(block.path), nn.Module)
    head = model.get_output_embeddings()
    assert (body.output_embedding is None) == (head is None)
    if body.output_embedding is not None:
        assert model.get_submodule(body.output_embedding) is head


def test_embedding_tables_and_what_is_tied_to_them() -> None:
    def found(model: hf.PreTrainedModel) -> dict[str, tuple[str, tuple[str, ...]]]:
        return {table.path: (table.role, table.tied) for table in anatomy.of(model).embeddings}

    assert found(models.tiny("bert")) == {
        "embeddings.word_embeddings": ("word", ()),
        "embeddings.position_embeddings": ("position", ()),
        "embeddings.token_type_embeddings": ("token_type", ()),
    }
    assert found(models.tiny("gpt2", task="lm"))["transformer.wte"] == ("word", ("lm_head",))
    assert found(models.tiny("llama", task="lm"))["model.embed_tokens"] == ("word", ())
    tied = models.tiny("llama", task="lm", tie_word_embeddings=True)
    assert found(tied)["model.embed_tokens"] == ("word", ("lm_head",))
    t5 = found(models.tiny("t5", task="lm"))
    assert list(t5) == ["shared"], "one table, listed once"
    assert set(t5["shared"][1]) >= {"encoder.embed_tokens", "decoder.embed_tokens"}


def test_what_was_pruned_is_seen_at_once(family: str) -> None:
    model = models.tiny(family)
    ffn = anatomy.of(model).ffns[-1]
    surgery.keep_neurons(model, ffn, torch.arange(40))
    assert anatomy.of(model).ffns[-1].width == 40


def test_an_unknown_architecture_names_the_closest_and_how_to_add_one() -> None:
    model = hf.MPNetModel(
        hf.MPNetConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20)
    )
    with pytest.raises(ModelError) as error:
        anatomy.of(model)
    assert error.value.code == "CK-M031"
    assert "mpnet" in error.value.what
    assert "CONTRIBUTING" in error.value.fix
    model.config.model_type = "berta"
    with pytest.raises(ModelError) as close:
        anatomy.of(model)
    assert "bert" in close.value.why


def shapes(model: hf.PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def rebuilt(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    """A stock model of the config alone."""
    with torch.device("meta"):
        return type(model)(type(model.config).from_dict(model.config.to_dict()))


def test_a_uniform_width_goes_into_the_config(family: str) -> None:
    model = models.tiny(family)
    for ffn in anatomy.of(model).ffns:
        surgery.keep_neurons(model, ffn, torch.arange(0, models.WIDTH, 2))
    surgery.sync_config(model)
    assert shapes(rebuilt(model)) == shapes(model)
    assert shapes(models.tiny(family)) != shapes(model)


@pytest.mark.parametrize("name", [*models.DECODERS[1:], "t5", "t5encoder"])
def test_a_uniform_head_count_goes_into_the_config_where_it_can(name: str) -> None:
    model = models.tiny(name)
    for part in anatomy.of(model).attentions:
        surgery.keep_heads(model, part, [0, 1, 4, 5] if part.heads == 8 else [1, 3])
    surgery.sync_config(model)
    assert shapes(rebuilt(model)) == shapes(model)
    assert shapes(models.tiny(name)) != shapes(model)


@pytest.mark.parametrize("name", [name for name in models.FAMILIES if name != "albert"])
def test_the_block_count_goes_into_the_config(name: str) -> None:
    model = models.tiny(name)
    for stack in anatomy.of(model).stacks:
        surgery.keep_blocks(model, stack, [0, 2])
    assert shapes(rebuilt(model)) == shapes(model)


def test_unequal_widths_leave_the_config_alone() -> None:
    model = models.tiny("bert")
    surgery.keep_neurons(model, anatomy.of(model).ffns[0], torch.arange(40))
    surgery.sync_config(model)
    assert model.config.intermediate_size == models.WIDTH


def test_supported_lists_what_the_readme_promises() -> None:
    promised = {"bert", "roberta", "distilbert", "albert", "gpt2", "llama", "qwen2", "qwen3", "t5"}
    assert promised <= set(anatomy.supported())
