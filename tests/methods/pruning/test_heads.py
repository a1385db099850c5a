from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.calibrate.moments import input_samples
from compresskit.core import anatomy, surgery
from compresskit.core.context import Batch, Context
from compresskit.core.targets import resolve
from compresskit.core.weights import view
from compresskit.errors import ModelError, RecipeError
from compresskit.methods.pruning import _shared
from compresskit.methods.pruning.heads import Heads
from tests import models

CRITERIA = ("wanda", "taylor", "magnitude")
GROUPED = ("llama", "qwen2", "qwen3")


def batches(name: str) -> list[Batch]:
    return [models.inputs(name, batch=4, length=12, padded=True, seed=seed) for seed in range(4)]


def pruned(model: PreTrainedModel, name: str, **options: Any) -> tuple[PreTrainedModel, Context]:
    """A pruned copy of ``model`` and the context that tells of it."""
    result, context = copy.deepcopy(model), Context(calibration=batches(name))
    method = Heads.model_validate(options)
    method.apply(result, resolve(result, method).sites, context)
    return result, context


def kept_heads(context: Context) -> list[list[int]]:
    return [detail["heads"] for detail in context.details.values()]


def test_every_architecture(family: str) -> None:
    model = models.tiny(family)
    result, context = pruned(model, family, keep=0.5)
    for before, after in zip(anatomy.of(model).attentions, anatomy.of(result).attentions, strict=True):
        detail = context.details[before.path]
        assert after.heads == detail["kept"] == before.heads // 2
        assert after.kv_heads == detail["key_value_heads"]
        assert 0 < detail["output_error"] < detail["output_error_without_refit"]
    assert models.max_difference(result, model, models.inputs(family)) > 1e-3


@pytest.mark.parametrize("criterion", CRITERIA)
def test_without_refit_what_is_left_is_untouched(criterion: str, family: str) -> None:
    model = models.tiny(family)
    result, context = pruned(model, family, keep=0.5, criterion=criterion, refit=False)
    reference = copy.deepcopy(model)
    for part in anatomy.of(model).attentions:
        surgery.keep_heads(reference, part, context.details[part.path]["heads"])
    for name, parameter in result.named_parameters():
        assert torch.equal(parameter, reference.get_parameter(name)), name


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "t5"])
def test_the_refit_improves_every_projection(criterion: str, name: str) -> None:
    model = models.tiny(name)
    result, context = pruned(model, name, keep=0.5, criterion=criterion)
    rows = input_samples(model, [part.output for part in anatomy.of(model).attentions], batches(name), 10**6)
    for part in anatomy.of(model).attentions:
        detail = context.details[part.path]
        index = surgery.head_index(detail["heads"], part.head_dim)
        x = rows[part.output]
        with torch.no_grad():
            wanted, found = model.get_submodule(part.output)(x), result.get_submodule(part.output)(x[:, index])
        scale = (x @ view(model, part.output).weight.T).norm()
        assert detail["output_error"] < detail["output_error_without_refit"]
        assert float((found - wanted).norm() / scale) == pytest.approx(detail["output_error"], rel=1e-3)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_head_that_writes_nothing_goes_first(criterion: str) -> None:
    model = models.tiny("bert")
    silent = [2, 0, 3]
    for part, head in zip(anatomy.of(model).attentions, silent, strict=True):
        view(model, part.output).weight[:, surgery.head_index([head], part.head_dim)] = 0
    _, context = pruned(model, "bert", keep=0.75, criterion=criterion)
    assert kept_heads(context) == [[0, 1, 3], [1, 2, 3], [0, 1, 2]]


def test_wanda_is_the_norm_of_what_a_head_is_expected_to_write() -> None:
    model = models.tiny("bert")
    _, context = pruned(model, "bert", keep=0.5, criterion="wanda")
    for part in anatomy.of(model).attentions:
        x = input_samples(model, [part.output], batches("bert"), 10**6)[part.output]
        entries = view(model, part.output).weight.abs() * x.square().mean(0).sqrt()
        scores = torch.stack([columns.norm() for columns in entries.split(part.head_dim, dim=1)])
        assert context.details[part.path]["heads"] == scores.topk(2).indices.sort().values.tolist()


def silence(model: PreTrainedModel, part: anatomy.Attention, heads: list[int]) -> None:
    view(model, part.output).weight[:, surgery.head_index(heads, part.head_dim)] *= 1e-3


@pytest.mark.parametrize("name", GROUPED)
def test_the_shape_that_keeps_most_is_chosen(name: str) -> None:
    """Eight query heads in two groups: a silent group goes whole, silent heads of each go one by one."""
    model = models.tiny(name)
    whole, single = copy.deepcopy(model), copy.deepcopy(model)
    for part in anatomy.of(model).attentions:
        silence(whole, part, [0, 1, 2, 3])
        silence(single, part, [1, 2, 4, 7])
    result, context = pruned(whole, name, keep=0.5, refit=False)
    assert kept_heads(context) == [[4, 5, 6, 7]] * 3
    assert [part.kv_heads for part in anatomy.of(result).attentions] == [1] * 3
    result, context = pruned(single, name, keep=0.5, refit=False)
    assert kept_heads(context) == [[0, 3, 5, 6]] * 3
    assert [part.kv_heads for part in anatomy.of(result).attentions] == [2] * 3


@pytest.mark.parametrize(
    ("keep", "unit", "shape"),
    [
        (0.5, "group", (4, 1)),
        (0.5, "head", (4, 2)),
        (0.75, "head", (6, 2)),
        (0.75, "auto", (6, 2)),
        (0.9, "auto", (6, 2)),
        (0.01, "auto", (1, 1)),
        (0.01, "head", (2, 2)),
        (0.01, "group", (4, 1)),
        (0.375, "auto", (3, 1)),
    ],
)
def test_shapes_of_grouped_heads(keep: float, unit: str, shape: tuple[int, int]) -> None:
    result, _ = pruned(models.tiny("llama"), "llama", keep=keep, unit=unit, criterion="magnitude", refit=False)
    assert {(part.heads, part.kv_heads) for part in anatomy.of(result).attentions} == {shape}


@pytest.mark.parametrize("keep", [0.01, 0.25, 0.6, 0.75])
def test_one_head_stays_at_least(keep: float) -> None:
    result, _ = pruned(models.tiny("gpt2"), "gpt2", keep=keep, criterion="magnitude", refit=False)
    expected = {0.01: 1, 0.25: 1, 0.6: 2, 0.75: 3}[keep]
    assert [part.heads for part in anatomy.of(result).attentions] == [expected] * 3


def test_heads_of_a_t5_stack_go_together_by_what_they_matter_in_all_layers() -> None:
    model = models.tiny("t5")
    for part in anatomy.of(model).attentions:
        if part.group != "encoder self-attention heads":
            continue
        if ".1.layer" in part.path:  # one layer of much larger scale must not decide alone
            view(model, part.output).weight.mul_(100)
            view(model, part.output).weight[:, surgery.head_index([3], part.head_dim)] *= 0.3
        else:
            silence(model, part, [1])
    _, context = pruned(model, "t5", keep=0.75, criterion="wanda", refit=False)
    by_group: dict[str | None, set[tuple[int, ...]]] = {}
    for part in anatomy.of(model).attentions:
        by_group.setdefault(part.group, set()).add(tuple(context.details[part.path]["heads"]))
    assert all(len(choices) == 1 for choices in by_group.values())
    assert by_group["encoder self-attention heads"] == {(0, 2, 3)}


def test_layers_choose_their_own_heads() -> None:
    model = models.tiny("distilbert")
    for part, head in zip(anatomy.of(model).attentions, (0, 1, 2), strict=True):
        silence(model, part, [head])
    _, context = pruned(model, "distilbert", keep=0.75)
    assert kept_heads(context) == [[1, 2, 3], [0, 2, 3], [0, 1, 3]]


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "t5"])
def test_cached_generation_equals_uncached(name: str) -> None:
    model = models.tiny(name, task="lm")
    result, _ = pruned(model, name, keep=0.5)
    prompt = torch.tensor([[9, 10, 11, 12]])
    outputs = [
        result.generate(input_ids=prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*outputs)


def test_too_few_heads_to_drop_one_are_refused() -> None:
    for name, options in (("bert", {"keep": 0.9}), ("llama", {"keep": 0.9, "unit": "group"})):
        with pytest.raises(RecipeError) as error:
            resolve(models.tiny(name), Heads.model_validate(options))
        assert error.value.code == "CK-T014"
        assert "keeps them all" in error.value.why


def test_keep_one_changes_nothing_and_says_so() -> None:
    model = models.tiny("bert")
    result, _ = pruned(model, "bert", keep=1.0)
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in result.named_parameters())
    assert Heads(keep=1.0).nothing_asked()
    assert Heads().nothing_asked() is None


def test_what_needs_calibration() -> None:
    assert Heads().requirements() == {"calibration"}
    assert Heads(refit=False).requirements() == {"calibration"}
    assert Heads(criterion="magnitude").requirements() == {"calibration"}
    assert Heads(criterion="magnitude", refit=False).requirements() == frozenset()
    assert Heads(keep=1.0).requirements() == frozenset()


def test_options_out_of_range() -> None:
    for options in ({"keep": 0}, {"keep": 1.1}, {"unit": "layer"}, {"criterion": "obs"}):
        with pytest.raises(ValidationError):
            Heads.model_validate(options)


@pytest.mark.parametrize(
    ("name", "unit"), [("bert", "auto"), ("gpt2", "auto"), ("t5", "auto"), ("llama", "group"), ("qwen2", "head")]
)
def test_the_predicted_saving_is_the_true_one(name: str, unit: str) -> None:
    model = models.tiny(name)
    method = Heads.model_validate({"keep": 0.5, "unit": unit, "criterion": "magnitude", "refit": False})
    sites = resolve(model, method).sites
    predicted = method.predicted_saving(model, sites)
    before = sum(parameter.nbytes for parameter in model.parameters())
    method.apply(model, sites, Context())
    tables = 0 if name != "t5" else 2 * 32 * 2 * 4  # columns of the two position tables, which aren't foreseen
    assert predicted == before - sum(parameter.nbytes for parameter in model.parameters()) - tables


def test_the_saving_is_unknown_where_data_choose_the_shape() -> None:
    model = models.tiny("llama")
    assert Heads(keep=0.5).predicted_saving(model, resolve(model, Heads(keep=0.5)).sites) is None
    assert Heads(keep=0.75).predicted_saving(model, resolve(model, Heads(keep=0.75)).sites) is not None


def test_shared_and_replaced_attentions_are_refused() -> None:
    class Wrapped(nn.Sequential):
        out_features = 64

    model = models.tiny("bert")
    surgery.share_module(model, "encoder.layer.1.attention", "encoder.layer.2.attention")
    found = resolve(model, Heads())
    assert [site.path for site in found.sites] == ["encoder.layer.0.attention.self"]
    assert all("prune before sharing" in reason for reason in found.skipped.values())
    other = models.tiny("bert")
    surgery.replace(other, "encoder.layer.1.attention.self.value", Wrapped(nn.Linear(64, 64)))
    assert "Wrapped" in resolve(other, Heads()).skipped["encoder.layer.1.attention.self"]


def test_a_refit_that_fails_names_its_layer_and_leaves_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.linalg.LinAlgError("singular")

    monkeypatch.setattr(_shared, "ridge_refit", fail)
    model = models.tiny("t5")
    method = Heads(keep=0.5)
    with pytest.raises(ModelError) as error:
        method.apply(model, resolve(model, method).sites, Context(calibration=batches("t5")))
    assert (error.value.code, error.value.where) == ("CK-T020", "encoder.block.0.layer.0.SelfAttention.o")
    assert {part.heads for part in anatomy.of(model).attentions} == {4}


def test_the_taylor_score_follows_the_output() -> None:
    """Of two heads that write as much, the one whose writing the output never sees goes."""
    model = models.tiny("bert")
    last = anatomy.of(model).attentions[-1]
    hidden: Tensor = view(model, last.output).weight
    hidden[:, surgery.head_index([1], last.head_dim)] = (
        10.0  # the same for all features: the norm after it takes it out
    )
    _, taylor = pruned(model, "bert", keep=0.75, criterion="taylor", refit=False, targets=("encoder.layer.2",))
    _, wanda = pruned(model, "bert", keep=0.75, criterion="wanda", refit=False, targets=("encoder.layer.2",))
    assert 1 not in taylor.details[last.path]["heads"]
    assert 1 in wanda.details[last.path]["heads"]
