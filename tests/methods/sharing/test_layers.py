from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.core import anatomy, surgery
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.errors import RecipeError
from compresskit.methods.quantization.int8 import Int8
from compresskit.methods.sharing.layers import Layers
from compresskit.pipeline import checks
from compresskit.pipeline.ledger import size_of
from tests import models

STACKED = [name for name in models.FAMILIES if name != "albert"]


def shared(model: PreTrainedModel, **options: Any) -> tuple[PreTrainedModel, dict[str, Any], list[str]]:
    """A copy of ``model`` whose blocks share; details; everything that was said."""
    result, told, details = copy.deepcopy(model), [], {}  # type: ignore[var-annotated]
    method = Layers.model_validate(options)
    sites = resolve(result, method).sites
    method.apply(result, sites, Context(warn=told.append, nothing=told.append, details=details))
    return result, details, told


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    return [model.get_submodule(block.path) for block in anatomy.of(model).blocks]


def own_names(block: nn.Module) -> list[str]:
    """Parameters that every block of a stack has."""
    return [name for name, _ in block.named_parameters() if "relative_attention_bias" not in name]


def groups_of(model: PreTrainedModel) -> list[list[int]]:
    """Which blocks share all that they can, read off the model."""
    found: dict[tuple[int, ...], list[int]] = {}
    for index, block in enumerate(blocks_of(model)):
        key = tuple(id(block.get_parameter(name)) for name in own_names(block))
        found.setdefault(key, []).append(index)
    return list(found.values())


def refusal(model: PreTrainedModel, code: str, **options: Any) -> RecipeError:
    with pytest.raises(RecipeError) as error:
        resolve(model, Layers.model_validate(options))
    assert error.value.code == code
    return error.value


@pytest.mark.parametrize("name", STACKED)
@pytest.mark.parametrize("init", ["pick", "mean"])
def test_the_parameters_are_one_and_the_modules_are_not(name: str, init: str) -> None:
    original = models.tiny(name)
    model, details, _ = shared(original, groups=[[0, 2]], init=init)
    wanted = [[0, 2], [1], *([index] for index in range(3, len(blocks_of(model))))]
    assert groups_of(model) == wanted
    first, _, third = blocks_of(model)[:3]
    assert first is not third
    for one, other in zip(first.modules(), third.modules(), strict=False):
        assert one is not other
    before = blocks_of(original)
    for parameter in own_names(first):
        values: list[Tensor] = [before[index].get_parameter(parameter) for index in (0, 2)]
        expected = values[0] if init == "pick" else (values[0] + values[1]) / 2
        torch.testing.assert_close(first.get_parameter(parameter), expected)
    freed = sum(first.get_parameter(parameter).numel() for parameter in own_names(first))
    assert size_of(original).parameters - size_of(model).parameters == freed
    method, (path, detail) = Layers.model_validate({"groups": [[0, 2]]}), next(iter(details.items()))
    assert method.predicted_saving(original, resolve(original, method).sites) == 4 * freed
    assert path == anatomy.of(model).blocks[0].path
    assert detail["parameters_freed"] == freed
    assert detail["shared_with"] == [anatomy.of(model).blocks[2].path]
    assert bool(torch.isfinite(models.output(model, models.inputs(name, padded=True))).all())


@pytest.mark.parametrize("name", STACKED)
def test_it_is_the_model_whose_blocks_have_equal_values(name: str) -> None:
    """The oracle: copying the values of block 1 into block 2, without sharing, gives the same outputs."""
    original = models.tiny(name, task="lm" if "lm" in models.tasks(name) else "base")
    model, _, _ = shared(original, groups=[[1, 2]])
    copied = copy.deepcopy(original)
    source, target = blocks_of(copied)[1:3]
    with torch.no_grad():
        for parameter in own_names(source):
            target.get_parameter(parameter).copy_(source.get_parameter(parameter))
    batch = models.inputs(name, padded=True)
    assert torch.equal(models.output(model, batch), models.output(copied, batch))
    assert models.max_difference(model, original, batch) > 1e-3


def test_each_block_keeps_its_own_number() -> None:
    model, _, _ = shared(models.tiny("llama"), unique=1)
    numbers = [block.get_submodule("self_attn").layer_idx for block in blocks_of(model)]
    assert numbers == [0, 1, 2]


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "t5"])
def test_cached_generation(name: str) -> None:
    model, _, _ = shared(models.tiny(name, task="lm"), unique=1)
    ids = models.inputs(name, batch=2, length=6)["input_ids"]
    cached, whole = (
        model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=use, pad_token_id=0)  # type: ignore[operator]
        for use in (True, False)
    )
    assert torch.equal(cached, whole)
    assert checks.check_cache(model, models.inputs(name), "sharing") is None


def test_patterns() -> None:
    deep = models.tiny("bert", num_hidden_layers=6)
    cases: list[tuple[dict[str, Any], list[list[int]]]] = [
        ({}, [[0, 1], [2, 3], [4, 5]]),
        ({"pattern": "immediate", "unique": 2}, [[0, 1, 2], [3, 4, 5]]),
        ({"pattern": "cyclic", "unique": 2}, [[0, 2, 4], [1, 3, 5]]),
        ({"pattern": "cyclic"}, [[0, 3], [1, 4], [2, 5]]),
        ({"unique": 1}, [[0, 1, 2, 3, 4, 5]]),
        ({"groups": [[1, 2], [3, 4]]}, [[0], [1, 2], [3, 4], [5]]),
        ({"groups": [[4, 1]]}, [[0], [1, 4], [2], [3], [5]]),
        ({"ignore": ["encoder.layer.0", "encoder.layer.5"]}, [[0], [1, 2], [3, 4], [5]]),
        ({"targets": ["encoder.layer.[2-5]"], "unique": 1}, [[0], [1], [2, 3, 4, 5]]),
    ]
    for options, wanted in cases:
        assert groups_of(shared(deep, **options)[0]) == wanted


def test_the_first_named_block_of_a_group_is_picked() -> None:
    original = models.tiny("bert")
    model, _, _ = shared(original, groups=[[2, 0]])
    weight = "encoder.layer.0.output.dense.weight"
    assert torch.equal(model.get_parameter(weight), original.get_parameter(weight.replace("0", "2", 1)))


def test_a_pattern_is_laid_over_each_stack() -> None:
    model, _, _ = shared(models.tiny("t5"), unique=1)
    assert groups_of(model) == [[0, 1, 2], [3, 4, 5]]


def test_the_relative_table_of_t5_stays_where_it_is() -> None:
    original = models.tiny("t5")
    model, _, _ = shared(original, unique=1, init="mean")
    for stack in ("encoder", "decoder"):
        path = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        assert torch.equal(model.get_parameter(path), original.get_parameter(path))
        assert not hasattr(model.get_submodule(f"{stack}.block.1.layer.0.SelfAttention"), "relative_attention_bias")
    by_value = [id(parameter) for name, parameter in model.named_parameters() if "relative" in name]
    assert len(by_value) == 2


@pytest.mark.parametrize("name", ["bert", "qwen3", "t5"])
def test_norms_may_stay_apart(name: str) -> None:
    original = models.tiny(name)
    model, _, _ = shared(original, unique=1, norms=False)
    first, second = blocks_of(model)[:2]
    kept = 0
    for parameter in own_names(first):
        owner = type(first.get_submodule(parameter.rpartition(".")[0])).__name__
        together = first.get_parameter(parameter) is second.get_parameter(parameter)
        assert together == (not owner.endswith("Norm")), parameter
        kept += not together
    assert kept >= 2


def test_quantized_blocks_share_their_codes() -> None:
    model = models.tiny("gpt2")
    int8 = Int8()
    int8.apply(model, resolve(model, int8).sites, Context())
    before = size_of(model)
    result, _, _ = shared(model, groups=[[0, 1]])
    assert groups_of(result) == [[0, 1], [2]]
    assert size_of(result).bytes < before.bytes
    assert "codes" in refusal(model, "CK-T042", groups=[[0, 1]], init="mean").why
    assert "codes" in refusal(model, "CK-T042", init="mean").why


def test_little_in_common_is_said_and_measured() -> None:
    original = models.tiny("bert")
    _, details, told = shared(original, groups=[[0, 1]])
    assert len(told) == 1
    assert "without recovery by training" in told[0]
    assert 0.5 < details["encoder.layer.0"]["relative_distance"] < 0.72
    equal = copy.deepcopy(original)
    with torch.no_grad():
        for name in own_names(blocks_of(equal)[0]):
            blocks_of(equal)[1].get_parameter(name).copy_(blocks_of(equal)[0].get_parameter(name))
    model, details, told = shared(equal, groups=[[0, 1]])
    assert told == []
    assert details["encoder.layer.0"]["relative_distance"] == 0
    assert models.max_difference(model, equal, models.inputs("bert")) == 0


def test_sharing_again_frees_nothing_more() -> None:
    once, _, _ = shared(models.tiny("bert"), groups=[[0, 1]])
    method = Layers.model_validate({"groups": [[0, 1]]})
    assert method.predicted_saving(once, resolve(once, method).sites) == 0
    twice, details, _ = shared(once, groups=[[0, 1]])
    assert details["encoder.layer.0"]["parameters_freed"] == 0
    assert groups_of(twice) == groups_of(once)


def test_as_many_distinct_blocks_as_there_are_asks_for_nothing() -> None:
    original = models.tiny("bert")
    model, details, told = shared(original, unique=3)
    assert told == ["no stack has more than 3 targeted blocks, so nothing is shared"]
    assert details == {}
    assert size_of(model) == size_of(original)


def test_albert_shares_already() -> None:
    for options in ({}, {"groups": [[0, 1]]}):
        assert "shares all parameters already" in refusal(models.tiny("albert"), "CK-T014", **options).why


def test_blocks_of_other_shapes_are_refused() -> None:
    model = models.tiny("bert", num_hidden_layers=4)
    ffn = anatomy.of(model).ffns[1]
    surgery.keep_neurons(model, ffn, torch.arange(100))
    why = refusal(model, "CK-T042", groups=[[0, 1]]).why
    assert "intermediate.dense.weight is float32 (128, 64) in encoder.layer.0" in why
    assert "float32 (100, 64) in encoder.layer.1" in why
    assert "`ignore`" in refusal(model, "CK-T042", pattern="immediate").fix
    result, _, _ = shared(model, pattern="immediate", ignore=["encoder.layer.[01]"])
    assert groups_of(result) == [[0], [1], [2, 3]]


def test_a_group_cannot_cross_stacks() -> None:
    assert refusal(models.tiny("t5"), "CK-T042", groups=[[2, 3]]).why.startswith("it crosses encoder and decoder")


def test_numbers_that_are_no_targeted_block() -> None:
    error = refusal(models.tiny("bert"), "CK-T041", groups=[[1, 3]])
    assert error.what == "there is no block 3 to share"
    assert "0 … 2" in error.why
    error = refusal(models.tiny("bert"), "CK-T041", groups=[[1, 2]], ignore=["encoder.layer.2"])
    assert error.where == "encoder.layer.2"


@pytest.mark.parametrize(
    "options",
    [
        {"groups": [[1]]},
        {"groups": []},
        {"groups": [[1, 1]]},
        {"groups": [[0, 1], [1, 2]]},
        {"groups": [[-1, 1]]},
        {"groups": [[0, 1]], "pattern": "cyclic"},
        {"groups": [[0, 1]], "unique": 2},
        {"unique": 0},
        {"pattern": "random"},
    ],
)
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Layers.model_validate(options)
