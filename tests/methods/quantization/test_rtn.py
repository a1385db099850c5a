from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from compresskit.core.compressor import Compressor
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.core.weights import view
from compresskit.errors import ModelError
from compresskit.methods.quantization.embedding import Embedding
from compresskit.methods.quantization.int8 import Int8
from compresskit.methods.quantization.rtn import Rtn
from compresskit.nn.packed import PackedLinear
from compresskit.pipeline.ledger import size_of
from tests import models

OPTIONS: list[dict[str, Any]] = [
    {"bits": 4},
    {"bits": 3, "group": 16, "symmetric": True},
    {"bits": 6, "per": "channel"},
    {"bits": 8, "per": "tensor", "search": False},
]


def quantized(model: Any, **options: Any) -> tuple[Any, Context]:
    """A quantized copy of ``model`` and the context that tells of it."""
    result, context = copy.deepcopy(model), Context()
    method = Rtn.model_validate(options)
    method.apply(result, resolve(result, method).sites, context)
    return result, context


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_sizes_are_predicted_and_told(name: str, options: dict[str, Any]) -> None:
    original = models.tiny(name)
    method = Rtn.model_validate(options)
    sites = resolve(original, method).sites
    model, context = quantized(original, **options)
    saved = size_of(original).bytes - size_of(model).bytes
    assert saved == method.predicted_saving(original, sites)
    assert size_of(model).parameters == size_of(original).parameters
    for site in sites:
        layer, weight = model.get_submodule(site.path), view(original, site.path).weight
        assert isinstance(layer, PackedLinear)
        bias = 0 if layer.bias is None else 4 * layer.bias.numel()
        detail = context.details[site.path]
        assert detail["bits_per_weight"] == pytest.approx(8 * (layer.stored_bytes() - bias) / weight.numel(), abs=1e-4)
        error = float((layer.weight - weight).norm() / weight.norm())
        assert detail["relative_error"] == pytest.approx(error, rel=1e-4)


def test_more_bits_are_closer_and_a_search_pays() -> None:
    original = models.tiny("bert")

    def error(**options: Any) -> float:
        return sum(detail["relative_error"] for detail in quantized(original, **options)[1].details.values())

    errors = [error(bits=bits) for bits in (2, 3, 4, 5, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert error(bits=3) < error(bits=3, search=False)


def test_columns_that_do_not_divide_are_refused_with_a_reason() -> None:
    model, method = models.tiny("bert"), Rtn(group=48)
    sites = resolve(model, Rtn()).sites
    reasons = method.refuse(model, sites)
    assert set(reasons) == set(sites)
    assert "don't divide into groups of 48" in next(iter(reasons.values()))
    assert Rtn(group=48, per="channel").refuse(model, sites) == {}


def test_a_tied_head_is_left_to_the_table() -> None:
    model = models.tiny("gpt2", task="lm")
    method = Rtn(targets=("lm_head",))
    with pytest.raises(Exception, match=r"quantization\.embedding"):
        resolve(model, method)


@pytest.mark.parametrize("method", [Rtn(), Int8(), Embedding()], ids=lambda method: method.name)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, method: Compressor) -> None:
    model = models.tiny("bert")
    sites = resolve(model, method).sites
    view(model, sites[0].path).weight[0, 0] = value
    with pytest.raises(ModelError) as caught:
        method.apply(model, sites, Context())
    assert caught.value.code == "CK-M054"


def test_dead_and_constant_rows() -> None:
    model = models.tiny("bert")
    method = Rtn()
    sites = resolve(model, method).sites
    weight = view(model, sites[0].path).weight
    weight[0], weight[1], weight[2] = 0, 0.25, -1e-8
    method.apply(model, sites, Context())
    found = model.get_submodule(sites[0].path).weight + 0
    assert bool((found[0] == 0).all())
    torch.testing.assert_close(found[1], torch.full_like(found[1], 0.25), rtol=2e-3, atol=0)
    assert bool(found[2].isfinite().all())


@pytest.mark.parametrize("options", [{"bits": 1}, {"bits": 12}, {"bits": 64}, {"group": 1}, {"per": "head"}])
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rtn.model_validate(options)
