from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from compresskit.core import anatomy, surgery
from compresskit.core.context import Batch, Context
from compresskit.core.targets import resolve
from compresskit.core.weights import view
from compresskit.errors import RecipeError
from compresskit.methods.pruning.layers import Layers
from tests import models

STACKED = [name for name in models.FAMILIES if name != "albert"]


def batches(name: str) -> list[Batch]:
    return [models.inputs(name, batch=4, length=12, padded=True, seed=seed) for seed in range(3)]


def pruned(model: PreTrainedModel, name: str, **options: Any) -> tuple[PreTrainedModel, Context]:
    """A pruned copy of ``model`` and the context that tells of it."""
    result, context = copy.deepcopy(model), Context(calibration=batches(name))
    method = Layers.model_validate(options)
    method.apply(result, resolve(result, method).sites, context)
    return result, context


def refusal(model: PreTrainedModel, **options: Any) -> str:
    with pytest.raises(RecipeError) as error:
        resolve(model, Layers.model_validate(options))
    assert error.value.code == "CK-T014"
    return error.value.why


def dropped(context: Context) -> dict[str, list[int]]:
    return {path: detail["dropped"] for path, detail in context.details.items()}


def do_nothing(model: PreTrainedModel, index: int) -> None:
    """Let block ``index`` of each stack add nothing to a residual stream: it has no influence."""
    body = anatomy.of(model)
    for stack in body.stacks:
        block = stack.blocks[index]
        for path in [part.output for part in block.attentions] + [ffn.output for ffn in block.ffns]:
            item = view(model, path)
            item.assign(torch.zeros_like(item.weight), None if item.bias is None else torch.zeros_like(item.bias))


@pytest.mark.parametrize("name", STACKED)
def test_listed_blocks_go_and_the_result_is_a_stock_model(name: str) -> None:
    model = models.tiny(name)
    last = len(anatomy.of(model).blocks) - 1
    listed = (1, last) if name == "t5" else (1,)
    result, context = pruned(model, name, drop=listed)
    reference = copy.deepcopy(model)
    for number, stack in enumerate(anatomy.of(model).stacks):
        surgery.keep_blocks(reference, stack, [0, 2] if number == 0 else [0, 1])
    assert models.max_difference(result, reference, models.inputs(name)) == 0
    assert models.max_difference(result, model, models.inputs(name)) > 1e-3
    with torch.device("meta"):
        stock = type(result)(type(result.config).from_dict(result.config.to_dict()))
    assert {key: p.shape for key, p in stock.named_parameters()} == {
        key: p.shape for key, p in result.named_parameters()
    }
    assert next(iter(dropped(context).values())) == [1]


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "qwen3", "t5", "t5encoder"])
def test_a_block_without_influence_goes_first(name: str) -> None:
    for index in (1, 2):
        model = models.tiny(name)
        do_nothing(model, index)
        _, context = pruned(model, name, keep=0.67)
        assert set(map(tuple, dropped(context).values())) == {(index,)}
        for detail in context.details.values():
            assert detail["influence"][index] == pytest.approx(0, abs=1e-6)
            assert (detail["kept"], detail["of"]) == (2, 3)


def test_influence_of_blocks_with_the_norm_behind() -> None:
    """BERT normalises after adding, so a block that adds nothing still scales a little: the least of all."""
    model = models.tiny("bert", num_hidden_layers=5)
    do_nothing(model, 3)
    _, context = pruned(model, "bert", keep=0.8)
    assert dropped(context) == {"encoder.layer": [3]}


@pytest.mark.parametrize(
    ("criterion", "keep", "expected"),
    [
        ("last", 0.5, [3, 4, 5]),
        ("last", 0.2, [1, 2, 3, 4, 5]),
        ("alternate", 0.5, [0, 2, 4]),
        ("alternate", 0.67, [2, 4]),
        ("alternate", 0.34, [0, 2, 4, 5]),
    ],
)
def test_criteria_without_data(criterion: str, keep: float, expected: list[int]) -> None:
    model = models.tiny("bert", num_hidden_layers=6)
    method = Layers.model_validate({"criterion": criterion, "keep": keep})
    assert method.requirements() == frozenset()
    context = Context()
    method.apply(model, resolve(model, method).sites, context)
    assert dropped(context) == {"encoder.layer": expected}
    assert len(model.encoder.layer) == model.config.num_hidden_layers == 6 - len(expected)


@pytest.mark.parametrize(("keep", "left"), [(0.01, 1), (0.34, 1), (0.5, 1), (0.51, 2), (0.67, 2), (None, 2)])
def test_how_many_stay(keep: float | None, left: int) -> None:
    result, _ = pruned(models.tiny("bert"), "bert", keep=keep)
    assert len(result.encoder.layer) == left


def test_the_share_is_one_of_the_matched_blocks() -> None:
    model = models.tiny("bert", num_hidden_layers=6)
    result, context = pruned(model, "bert", keep=0.5, criterion="last", targets=("encoder.layer.[0-3]",))
    assert dropped(context) == {"encoder.layer": [2, 3]}
    assert len(result.encoder.layer) == 4


def test_t5_stacks_each_lose_their_share_and_keep_the_first_block() -> None:
    model = models.tiny("t5")
    for stack in anatomy.of(model).stacks:
        assert stack.blocks[0].pinned
    do_nothing(model, 0)
    result, context = pruned(model, "t5", keep=0.34)
    assert dropped(context) == {"encoder.block": [1, 2], "decoder.block": [1, 2]}
    assert (result.config.num_layers, result.config.num_decoder_layers) == (1, 1)


def test_one_stack_of_t5_alone() -> None:
    result, context = pruned(models.tiny("t5"), "t5", keep=0.67, criterion="last", targets=("decoder",))
    assert dropped(context) == {"decoder.block": [2]}
    assert (result.config.num_layers, result.config.num_decoder_layers) == (3, 2)


def test_indices_count_through_the_stacks() -> None:
    result, context = pruned(models.tiny("t5"), "t5", drop=(1, 5))
    assert dropped(context) == {"encoder.block": [1], "decoder.block": [2]}
    assert len(result.encoder.block) == 2


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_cached_generation_equals_uncached(name: str) -> None:
    result, _ = pruned(models.tiny(name, task="lm"), name, keep=0.67)
    prompt = torch.tensor([[9, 10, 11, 12]])
    outputs = [
        result.generate(input_ids=prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*outputs)


def test_refusals_have_their_reason() -> None:
    bert, t5, albert = models.tiny("bert"), models.tiny("t5"), models.tiny("albert")
    assert "several times" in refusal(albert)
    assert "several times" in refusal(albert, drop=(0,))
    assert "relative position table" in refusal(t5, drop=(0,))
    assert "relative position table" in refusal(t5, drop=(3,))
    assert "relative position table" in refusal(t5, keep=0.5, targets=("encoder.block.0",))
    assert "block 3 doesn't exist" in refusal(bert, drop=(1, 3))
    assert "nothing would be left of the encoder" in refusal(bert, drop=(0, 1, 2))
    assert "not among the targets" in refusal(bert, drop=(2,), targets=("encoder.layer.0",))
    assert "keeps them all" in refusal(bert, keep=0.9)
    assert "keeps them all" in refusal(bert, keep=0.5, targets=("encoder.layer.0",))


def test_shared_blocks_are_refused() -> None:
    model = models.tiny("bert", num_hidden_layers=5)
    surgery.share_module(model, "encoder.layer.1", "encoder.layer.2")
    assert "before sharing" in refusal(model, drop=(2,))
    found = resolve(model, Layers(keep=0.67))
    assert set(found.skipped) == {"encoder.layer.1", "encoder.layer.2"}
    partly = models.tiny("bert", num_hidden_layers=5)
    surgery.share_module(partly, "encoder.layer.0.output.dense", "encoder.layer.4.output.dense")
    found = resolve(partly, Layers(keep=0.67))
    assert set(found.skipped) == {"encoder.layer.0", "encoder.layer.4"}
    assert "encoder.layer.4.output.dense" in found.skipped["encoder.layer.0"]


def test_nothing_asked() -> None:
    model = models.tiny("bert")
    for method in (Layers(keep=1.0), Layers(drop=())):
        assert method.nothing_asked()
        assert method.requirements() == frozenset()
        method.apply(model, resolve(model, method).sites, Context())
        assert len(model.encoder.layer) == 3
    assert Layers().nothing_asked() is None
    assert Layers().requirements() == {"calibration"}


def test_options_out_of_range() -> None:
    for options in (
        {"keep": 0},
        {"keep": 1.2},
        {"keep": 0.5, "drop": (1,)},
        {"drop": (1, 1)},
        {"drop": (-1,)},
        {"criterion": "middle"},
    ):
        with pytest.raises(ValidationError):
            Layers.model_validate(options)


@pytest.mark.parametrize(
    ("name", "options"), [("bert", {"keep": 0.67}), ("t5", {"keep": 0.34}), ("gpt2", {"drop": (0, 2)})]
)
def test_the_predicted_saving_is_the_true_one(name: str, options: dict[str, Any]) -> None:
    model = models.tiny(name)
    method = Layers.model_validate(options)
    predicted = method.predicted_saving(model, resolve(model, method).sites)
    result, _ = pruned(model, name, **options)
    sizes = [sum(parameter.nbytes for parameter in each.parameters()) for each in (model, result)]
    assert predicted == sizes[0] - sizes[1]


def test_the_saving_is_unknown_where_blocks_differ() -> None:
    model = models.tiny("bert")
    surgery.keep_neurons(model, anatomy.of(model).ffns[1], torch.arange(40))
    assert Layers(keep=0.67).predicted_saving(model, resolve(model, Layers(keep=0.67)).sites) is None
    assert Layers(drop=(1,)).predicted_saving(model, resolve(model, Layers(drop=(1,))).sites) is not None
