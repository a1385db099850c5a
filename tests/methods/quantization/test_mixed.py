from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.core.weights import view
from compresskit.errors import RecipeError
from compresskit.methods.quantization.mixed import Mixed
from compresskit.methods.quantization.rtn import Rtn
from compresskit.nn.embedding import QuantizedEmbedding, QuantizedHead
from compresskit.nn.packed import PackedLinear
from compresskit.pipeline.ledger import size_of
from tests import models


def batches(name: str, first: int = 0) -> list[dict[str, torch.Tensor]]:
    return [models.inputs(name, batch=8, length=16, padded=True, seed=first + seed) for seed in range(4)]


def uneven() -> Any:
    """A BERT of which one block matters far more than the others."""
    model = models.tiny("bert")
    with torch.no_grad():
        for index, share in enumerate((1.0, 0.05, 0.05)):
            for path in ("attention.output.dense", "output.dense"):
                view(model, f"encoder.layer.{index}.{path}").weight.mul_(share)
    return model


def mixed(model: Any, name: str, **options: Any) -> tuple[Any, Context]:
    result, context = copy.deepcopy(model), Context(calibration=batches(name))
    method = Mixed.model_validate(options)
    method.apply(result, resolve(result, method).sites, context)
    return result, context


def bits_of(context: Context) -> dict[str, int]:
    return {path: detail["bits"] for path, detail in context.details.items()}


@pytest.mark.parametrize("bits", [3.5, 5.0])
def test_the_budget_is_kept_and_used(bits: float) -> None:
    original = models.tiny("bert")
    model, context = mixed(original, "bert", bits=bits, group=32)
    before, after = (sum(detail["bytes"][index] for detail in context.details.values()) for index in (0, 1))
    assert 0.93 * bits < 8 * after / (before / 4) <= bits
    assert size_of(original).bytes - size_of(model).bytes == before - after
    sites = resolve(original, Mixed()).sites
    assert before - after >= Mixed(bits=bits, group=32).predicted_saving(original, sites)  # type: ignore[operator]


SENSITIVITIES = pytest.mark.parametrize("sensitivity", ["measured", "hessian"])


@SENSITIVITIES
def test_what_matters_gets_more_bits(sensitivity: str) -> None:
    chosen = bits_of(mixed(uneven(), "bert", bits=4.5, group=32, sensitivity=sensitivity)[1])
    outputs = [chosen[f"encoder.layer.{index}.output.dense"] for index in range(3)]
    assert outputs[0] > max(outputs[1:])


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "albert", "mixtral", "xlnet", "distilbert"])
def test_traces_of_every_kind_of_site(name: str) -> None:
    """Each site that the result depends on has one: tables, heads, experts too."""
    original = models.tiny(name, task="base" if name in ("albert", "distilbert") else "lm")
    model, context = mixed(original, name, bits=6, group=16, sensitivity="hessian")
    chosen = bits_of(context)
    assert set(chosen.values()) - {min(Mixed().choices)}
    if name in ("gpt2", "t5"):
        assert chosen["transformer.wte" if name == "gpt2" else "shared"] > min(Mixed().choices)
    assert bool(models.output(model, batches(name)[0]).isfinite().all())


@SENSITIVITIES
def test_better_than_equal_bits_in_as_many_bytes(sensitivity: str) -> None:
    original = uneven()
    blocks = ("encoder.layer",)
    model, context = mixed(
        original, "bert", bits=3.75, group=32, rounding="nearest", targets=blocks, sensitivity=sensitivity
    )
    plain = copy.deepcopy(original)
    equal, method = Context(), Rtn(bits=3, group=32)
    method.apply(plain, resolve(plain, method).sites, equal)
    stored = [sum(detail["bytes"][1] for detail in each.details.values()) for each in (context, equal)]
    assert stored[0] <= stored[1] * 1.05
    fresh = batches("bert", 50)
    errors = [
        sum(float((models.output(each, batch) - models.output(original, batch)).square().sum()) for batch in fresh)
        for each in (model, plain)
    ]
    assert errors[0] < errors[1]


def test_tables_and_tied_heads_belong_to_the_budget() -> None:
    model, context = mixed(models.tiny("gpt2", task="lm"), "gpt2", bits=5)
    assert isinstance(model.get_submodule("transformer.wte"), QuantizedEmbedding)
    head = model.get_submodule("lm_head")
    assert isinstance(head, QuantizedHead)
    assert head.codes is model.get_submodule("transformer.wte").codes
    assert context.details["transformer.wte"]["shared_with"] == ["lm_head"]
    assert isinstance(model.get_submodule("transformer.h.0.mlp.c_fc"), PackedLinear)
    assert bool(models.output(model, batches("gpt2")[0]).isfinite().all())


def test_sites_that_no_gradient_reaches_are_told() -> None:
    """A pooler that the result doesn't use."""
    model, heard = models.tiny("bert"), []
    context = Context(calibration=batches("bert"), warn=heard.append)
    method = Mixed(bits=5, group=16, sensitivity="hessian", targets=("pooler.dense", "encoder.layer.0.output.dense"))
    method.apply(model, resolve(model, method).sites, context)
    assert heard == ["no gradient reaches pooler.dense: the fewest bits are taken there"]
    assert bits_of(context)["pooler.dense"] == min(method.choices) < bits_of(context)["encoder.layer.0.output.dense"]


def test_one_choice_is_that_choice_everywhere() -> None:
    assert set(bits_of(mixed(models.tiny("bert"), "bert", bits=6, choices=(4,))[1]).values()) == {4}


def test_weights_come_back_after_the_measurement() -> None:
    original = models.tiny("bert")
    model, _ = mixed(original, "bert", bits=6, targets=("encoder.layer.0.output.dense",))
    untouched = "encoder.layer.1.output.dense"
    assert torch.equal(view(model, untouched).weight, view(original, untouched).weight)


def test_a_budget_that_is_too_small() -> None:
    with pytest.raises(RecipeError) as caught:
        mixed(models.tiny("bert"), "bert", mebibytes=0.001)
    assert caught.value.code == "CK-T056"


@pytest.mark.parametrize("options", [{"bits": 1}, {"choices": []}, {"choices": [9]}, {"mebibytes": 0}, {"group": 1}])
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Mixed.model_validate(options)
