from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from compresskit.core import anatomy, surgery
from compresskit.core.weights import view
from compresskit.errors import ModelError
from tests import models

TOLERANCE = 1e-5
EVEN = [0, 2, 5, 7]
"""Of 8 query heads in 2 groups, two of each; the second half of what follows is one whole group."""
GENERATING = ("gpt2", "llama", "qwen2", "qwen3", "t5")


def silence(model: hf.PreTrainedModel, path: str, kept: Tensor) -> None:
    """Set the columns of an output projection that aren't ``kept`` to zero: what feeds them counts for nothing."""
    item = view(model, path)
    mask = torch.zeros(item.in_features)
    mask[kept] = 1
    item.assign(item.weight * mask)


def batches(name: str) -> list[dict[str, Tensor]]:
    return [models.inputs(name), models.inputs(name, padded=True, seed=1)]


def assert_equal(left: hf.PreTrainedModel, right: hf.PreTrainedModel, name: str) -> None:
    for batch in batches(name):
        assert models.max_difference(left, right, batch) <= TOLERANCE


def keep_heads_everywhere(model: hf.PreTrainedModel, kept: Sequence[int]) -> tuple[hf.PreTrainedModel, int]:
    """Cut all attentions of ``model`` to ``kept``; gives the reference with the others silenced."""
    reference = copy.deepcopy(model)
    for part in anatomy.of(model).attentions:
        silence(reference, part.output, surgery.head_index(kept, part.head_dim))
        surgery.keep_heads(model, part, kept)
    return reference, len(kept)


@pytest.mark.parametrize("kept", [[1, 3], [0]])
@pytest.mark.parametrize("name", [name for name in models.FAMILIES if name not in ("llama", "qwen2", "qwen3")])
def test_cut_heads_equal_silenced_heads(name: str, kept: list[int]) -> None:
    model = models.tiny(name)
    original = copy.deepcopy(model)
    reference, count = keep_heads_everywhere(model, kept)
    assert_equal(model, reference, name)
    assert models.max_difference(model, original, models.inputs(name)) > 1e-3, "the heads did matter"
    assert all(part.heads == part.kv_heads == count for part in anatomy.of(model).attentions)


@pytest.mark.parametrize("kept", [EVEN, [4, 5, 6, 7], [1, 6], [3]], ids=["even", "group", "one of each", "one"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_cut_heads_of_key_value_groups(name: str, kept: list[int]) -> None:
    model = models.tiny(name)
    original = copy.deepcopy(model)
    reference, count = keep_heads_everywhere(model, kept)
    assert_equal(model, reference, name)
    assert models.max_difference(model, original, models.inputs(name)) > 1e-3
    groups = len({head // 4 for head in kept})
    for part in anatomy.of(model).attentions:
        assert (part.heads, part.kv_heads) == (count, groups)
        assert model.get_submodule(part.path).num_key_value_groups == count // groups


@pytest.mark.parametrize("kept", [[], [0, 1, 4], [0, 4, 5, 6]])
def test_groups_of_unequal_size_are_refused(kept: list[int]) -> None:
    model = models.tiny("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError) as error:
        surgery.keep_heads(model, anatomy.of(model).attentions[0], kept)
    assert error.value.code == "CK-M035"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama"])
def test_heads_may_differ_by_layer(name: str, attention: str) -> None:
    model = models.tiny(name, attn_implementation=attention)
    reference = copy.deepcopy(model)
    choices = [EVEN, [0, 1, 2, 3], [2, 4]] if name == "llama" else [[0], [1, 2, 3], [0, 3]]
    for part, kept in zip(anatomy.of(model).attentions, choices, strict=True):
        silence(reference, part.output, surgery.head_index(kept, part.head_dim))
        surgery.keep_heads(model, part, kept)
    assert_equal(model, reference, name)


def test_attributes_of_cut_attentions_are_true() -> None:
    for name, path, expected in (
        ("bert", "encoder.layer.0.attention.self", {"num_attention_heads": 2, "all_head_size": 32}),
        ("distilbert", "transformer.layer.0.attention", {"n_heads": 2}),
        ("albert", anatomy.of(models.tiny("albert")).attentions[0].path, {"num_attention_heads": 2}),
        ("gpt2", "h.0.attn", {"num_heads": 2, "split_size": 32, "head_dim": 16}),
        ("t5encoder", "encoder.block.0.layer.0.SelfAttention", {"n_heads": 2, "inner_dim": 32}),
    ):
        model = models.tiny(name)
        keep_heads_everywhere(model, [0, 3])
        module = model.get_submodule(path)
        assert {key: getattr(module, key) for key in expected} == expected


def test_columns_of_the_relative_position_table_go_with_the_heads() -> None:
    model = models.tiny("t5")
    table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    before = view(model, table).weight.clone()
    keep_heads_everywhere(model, [1, 3])
    assert torch.equal(view(model, table).weight, before[:, [1, 3]])
    assert model.get_submodule(table).embedding_dim == 2


def test_cut_neurons_equal_silenced_neurons(family: str) -> None:
    model = models.tiny(family)
    original, reference = copy.deepcopy(model), copy.deepcopy(model)
    for number, ffn in enumerate(anatomy.of(model).ffns):
        kept = torch.randperm(models.WIDTH)[: 50 + 10 * number].sort().values
        silence(reference, ffn.output, kept)
        surgery.keep_neurons(model, ffn, kept)
    assert_equal(model, reference, family)
    assert models.max_difference(model, original, models.inputs(family)) > 1e-3
    assert [ffn.width for ffn in anatomy.of(model).ffns] == [50 + 10 * i for i in range(len(anatomy.of(model).ffns))]


def bypass(model: hf.PreTrainedModel, path: str) -> None:
    """Let the block at ``path`` return its input."""

    def pass_through(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        entering = args[0] if args else kwargs["hidden_states"]
        return entering if isinstance(output, Tensor) else (entering, *output[1:])

    model.get_submodule(path).register_forward_hook(pass_through, with_kwargs=True)


@pytest.mark.parametrize("name", [name for name in models.FAMILIES if name != "albert"])
def test_a_dropped_block_equals_one_that_does_nothing(name: str) -> None:
    model = models.tiny(name)
    original, reference = copy.deepcopy(model), copy.deepcopy(model)
    for stack in anatomy.of(model).stacks:
        bypass(reference, stack.blocks[1].path)
        surgery.keep_blocks(model, stack, [0, 2])
    assert_equal(model, reference, name)
    assert models.max_difference(model, original, models.inputs(name)) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "qwen3", "t5"])
def test_dropping_blocks_renumbers_the_cache_index(name: str) -> None:
    model = models.tiny(name, task="lm")
    for stack in anatomy.of(model).stacks:
        surgery.keep_blocks(model, stack, [0, 2])
    for stack in anatomy.of(model).stacks:
        for block in stack.blocks:
            found = {m.layer_idx for m in model.get_submodule(block.path).modules() if hasattr(m, "layer_idx")}
            assert found - {None} <= {block.index}
            assert block.index in found or stack.name == "encoder"
    if getattr(model.config, "layer_types", None) is not None:
        assert len(model.config.layer_types) == 2


def test_layer_types_follow_the_blocks() -> None:
    model = models.tiny("qwen2")
    model.config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    surgery.keep_blocks(model, anatomy.of(model).stacks[0], [1, 2])
    assert model.config.layer_types == ["sliding_attention", "full_attention"]


def cut_everything(model: hf.PreTrainedModel) -> None:
    """Fewer blocks, heads and neurons."""
    for stack in anatomy.of(model).stacks:
        surgery.keep_blocks(model, stack, [0, 2])
    for part in anatomy.of(model).attentions:
        surgery.keep_heads(model, part, EVEN if part.heads == 8 else [0, 3])
    for ffn in anatomy.of(model).ffns:
        surgery.keep_neurons(model, ffn, torch.arange(3, 60))
    surgery.sync_config(model)


@pytest.mark.parametrize("name", GENERATING)
def test_generation_with_a_cache_equals_generation_without(name: str) -> None:
    model = models.tiny(name, task="lm")
    cut_everything(model)
    batch = {key: value for key, value in models.inputs(name, batch=2, length=7).items() if key != "decoder_input_ids"}
    batch["input_ids"][:, -1] = 9  # generation stops at the end token
    found = []
    for cached in (True, False):
        result = model.generate(
            **batch,
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            use_cache=cached,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found.append((result.sequences, torch.stack(result.logits)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], atol=1e-4)


def test_ties_survive_pruning() -> None:
    for name, changes in (("gpt2", {}), ("llama", {"tie_word_embeddings": True}), ("t5", {}), ("bert", {})):
        model = models.tiny(name, task="lm", **changes)
        before = surgery.ties(model)
        assert before, name
        cut_everything(model)
        assert surgery.ties(model) == before


def test_ties_name_the_first_of_a_parameter() -> None:
    model = models.tiny("t5", task="lm")
    assert surgery.ties(model)["encoder.embed_tokens.weight"] == "shared.weight"
    assert surgery.ties(models.tiny("llama", task="lm")) == {}


def share_blocks(model: hf.PreTrainedModel) -> None:
    surgery.share_module(model, "encoder.layer.1", "encoder.layer.2")


def test_shared_modules_stay_distinct() -> None:
    model = models.tiny("bert")
    share_blocks(model)
    one, other = model.encoder.layer[1], model.encoder.layer[2]
    assert one is not other
    assert one.intermediate.dense.weight is other.intermediate.dense.weight
    assert surgery.aliases(model, "encoder.layer.1") == ["encoder.layer.2"]
    assert surgery.aliases(model, "encoder.layer.1.output.dense") == ["encoder.layer.2.output.dense"]
    assert surgery.aliases(model, "encoder.layer.0") == []
    assert surgery.tied_elsewhere(model, "encoder.layer.1.output") == []


def test_cutting_a_shared_module_cuts_its_aliases() -> None:
    model = models.tiny("bert")
    share_blocks(model)
    ffn = anatomy.of(model).ffns[1]
    reference = copy.deepcopy(model)
    silence(reference, ffn.output, torch.arange(40))
    surgery.keep_neurons(model, ffn, torch.arange(40))
    assert [part.width for part in anatomy.of(model).ffns] == [models.WIDTH, 40, 40]
    assert model.encoder.layer[1].output.dense.weight is model.encoder.layer[2].output.dense.weight
    assert_equal(model, reference, "bert")


def test_sharing_refuses_other_shapes_and_other_names() -> None:
    model = models.tiny("bert")
    with pytest.raises(ModelError) as shape:
        surgery.share_parameters(
            model, "encoder.layer.0.output.dense.weight", "encoder.layer.1.intermediate.dense.weight"
        )
    assert shape.value.code == "CK-M033"
    with pytest.raises(ModelError) as names:
        surgery.share_module(model, "encoder.layer.0.output", "encoder.layer.1.intermediate")
    assert names.value.code == "CK-M033"


def test_replace_puts_sharing_copies_at_aliases() -> None:
    model = models.tiny("bert")
    share_blocks(model)
    new = nn.Linear(models.WIDTH, models.HIDDEN)
    surgery.replace(model, "encoder.layer.1.output.dense", new)
    one, other = model.encoder.layer[1].output.dense, model.encoder.layer[2].output.dense
    assert one is new
    assert other is not new
    assert other.weight is new.weight
    assert other.bias is new.bias
    assert not new.training, "it is in the mode of what it replaces"


def test_replace_refuses_to_break_a_tie() -> None:
    model = models.tiny("gpt2", task="lm")
    with pytest.raises(ModelError) as error:
        surgery.replace(model, "transformer.wte", nn.Embedding(models.VOCABULARY, models.HIDDEN))
    assert error.value.code == "CK-M032"
    assert "lm_head" in error.value.what
    assert model.lm_head.weight is model.transformer.wte.weight
    with pytest.raises(ModelError) as cut:
        surgery.take_rows(model, "transformer.wte", torch.arange(9))
    assert cut.value.code == "CK-M032"


def test_tied_modules_can_be_replaced_together() -> None:
    model = models.tiny("gpt2", task="lm")
    table = nn.Embedding(models.VOCABULARY, models.HIDDEN)
    head = nn.Linear(models.HIDDEN, models.VOCABULARY, bias=False)
    surgery.replace_tied(model, {"transformer.wte": table, "lm_head": head})
    assert model.lm_head.weight is table.weight
    assert model.transformer.wte is table


@pytest.mark.parametrize("path", ["encoder.layer.0.output.dense", "embeddings.word_embeddings"])
def test_taking_rows_and_columns(path: str) -> None:
    model = models.tiny("bert")
    before = view(model, path)
    weight, bias = before.weight.clone(), None if before.bias is None else before.bias.clone()
    rows, columns = torch.tensor([3, 1, 4]), torch.tensor([5, 9])
    surgery.take_rows(model, path, rows)
    surgery.take_columns(model, path, columns)
    after = view(model, path)
    assert torch.equal(after.weight, weight[rows][:, columns])
    assert (after.bias is None) == (bias is None)
    if bias is not None:
        assert torch.equal(after.bias, bias[rows])
    module = after.module
    sizes = (module.out_features, module.in_features) if isinstance(module, nn.Linear) else None
    assert (sizes or (module.num_embeddings, module.embedding_dim)) == (3, 2)


def test_a_frozen_matrix_stays_frozen() -> None:
    model = models.tiny("gpt2")
    model.h[0].mlp.c_fc.weight.requires_grad_(False)
    surgery.keep_neurons(model, anatomy.of(model).ffns[0], torch.arange(40))
    assert not model.h[0].mlp.c_fc.weight.requires_grad
    assert model.h[0].mlp.c_proj.weight.requires_grad
    assert (model.h[0].mlp.c_fc.nf, model.h[0].mlp.c_proj.nx) == (40, 40)


def test_attributes_must_exist() -> None:
    model = models.tiny("bert")
    with pytest.raises(ModelError) as error:
        surgery.set_attributes(model, "encoder.layer.0.attention.self", n_heads=2)
    assert error.value.code == "CK-M034"
    assert not hasattr(model.encoder.layer[0].attention.self, "n_heads")


def test_head_index() -> None:
    assert surgery.head_index([0, 2], 3).tolist() == [0, 1, 2, 6, 7, 8]


def test_blocks_of_something_that_is_no_list() -> None:
    model = models.tiny("bert")
    stack = anatomy.Stack("encoder", "encoder", anatomy.of(model).blocks)
    with pytest.raises(ModelError) as error:
        surgery.keep_blocks(model, stack, [0])
    assert error.value.code == "CK-M034"


def test_attention_is_set_and_given_back() -> None:
    model = models.tiny("bert")
    original = copy.deepcopy(model)
    path = anatomy.of(model).attentions[0].path
    surgery.set_attention(model, path, {"kind": "window", "window": 2, "global_tokens": 0})
    assert models.max_difference(model, original, models.inputs("bert")) > 1e-3
    surgery.set_attention(model, path, None)
    assert models.max_difference(model, original, models.inputs("bert")) <= TOLERANCE


def test_untied_heads_are_in_the_config_where_it_can_say_so() -> None:
    model = models.tiny("gpt2", task="lm")
    batch = models.inputs("gpt2")
    expected = models.output(model, batch)
    surgery.untie(model, "lm_head.weight")
    assert surgery.ties(model) == {}
    assert model.config.tie_word_embeddings is False
    assert torch.equal(models.output(model, batch), expected)
    with pytest.raises(ModelError, match="CK-M062"):
        surgery.untie(model, "lm_head.weight")


def test_t5_config_says_more_than_whether_the_head_is_tied() -> None:
    model = models.tiny("t5", task="lm")
    batch = models.inputs("t5")
    expected = models.output(model, batch)
    surgery.untie(model, "lm_head.weight")
    assert model.config.tie_word_embeddings is True
    assert model.config.scale_decoder_outputs is True
    assert "lm_head.weight" not in surgery.ties(model)
    assert "encoder.embed_tokens.weight" in surgery.ties(model)
    assert torch.equal(models.output(model, batch), expected)
