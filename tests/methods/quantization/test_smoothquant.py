"""``quantization.smoothquant``: folding alone changes nothing, outliers move, and int8 gets closer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from compresskit.core import anatomy
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.core.weights import view
from compresskit.errors import CompressKitError
from compresskit.methods.quantization import smoothquant as module
from compresskit.methods.quantization.int8 import Int8
from compresskit.methods.quantization.smoothquant import SmoothQuant
from compresskit.pipeline.ledger import size_of
from tests import models
from tests.contract.conformance import batches_of

FRESH: dict[str, Any] = {"batch": 6, "length": 14, "padded": True, "seed": 77}


def outlying(name: str) -> PreTrainedModel:
    """A decoder whose norms, values and neurons have channels far larger than others."""
    model = models.tiny(name, task="lm")
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "layernorm.weight" in path or ".ln_" in path:
                parameter[3] *= 40
            if path.endswith(("v_proj.weight", "up_proj.weight")):
                parameter[5] *= 40
    return model


def applied(original: PreTrainedModel, name: str, **options: Any) -> tuple[PreTrainedModel, Context]:
    model, context = copy.deepcopy(original), Context(calibration=batches_of(name))
    method = SmoothQuant.model_validate(options)
    sites = resolve(model, method).sites
    for block in anatomy.of(model).blocks:
        method.apply(model, [site for site in sites if site.block == block.path], context)
    return model, context


def error(model: PreTrainedModel, original: PreTrainedModel, name: str) -> float:
    batch = models.inputs(name, **FRESH)
    mask = batch["attention_mask"].bool()
    found, exact = models.output(model, batch)[mask], models.output(original, batch)[mask]
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_closer_than_int8_where_channels_stand_out(name: str) -> None:
    original = outlying(name)
    smooth, context = applied(original, name)
    plain, method = copy.deepcopy(original), Int8()
    method.apply(plain, resolve(plain, method).sites, Context())
    assert error(smooth, original, name) < 0.8 * error(plain, original, name)
    assert size_of(smooth) == size_of(plain), "smoothing is stored nowhere"
    places = {detail["smoothing"] for detail in context.details.values()}
    assert places >= ({"norm"} if name == "gpt2" else {"norm", "values", "up"})


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_folding_alone_changes_nothing_and_moves_outliers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "install_int8", lambda model, path, _, context, **more: context.details.update({path: more})
    )
    original = outlying(name).double()  # in float32 rounding alone moves outputs of such a model by 1e-4
    folded, context = applied(original, name, alpha=0.5)
    assert any(detail["smoothing"] == "norm" for detail in context.details.values())
    batch = models.inputs(name, **FRESH)
    exact = models.output(original, batch)
    assert float((models.output(folded, batch) - exact).abs().max()) <= 1e-5 * float(exact.abs().max())
    site = next(path for path, detail in context.details.items() if detail["smoothing"] == "norm")
    before, after = (_largest_input(model, site, batch) for model in (original, folded))
    assert after < before / 2, "the input's outlier shrinks"
    assert view(folded, site).weight[:, 3].abs().max() > view(original, site).weight[:, 3].abs().max()


def _largest_input(model: PreTrainedModel, path: str, batch: dict[str, torch.Tensor]) -> float:
    seen: list[float] = []
    norm = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(float(args[0].abs().max())))
    models.output(model, batch)
    norm.remove()
    return seen[0]


def test_post_norm_models_are_int8_with_smoothed_values() -> None:
    original = models.tiny("bert")
    model, context = applied(original, "bert")
    assert {detail["smoothing"] for detail in context.details.values()} <= {"none", "values"}
    assert error(model, original, "bert") < 0.05


def test_dead_channels_and_constant_rows() -> None:
    original = outlying("llama")
    first = "model.layers.0."
    with torch.no_grad():
        original.get_parameter(f"{first}input_layernorm.weight")[7] = 0
        view(original, f"{first}self_attn.q_proj").weight[2] = 0.25
        view(original, f"{first}self_attn.k_proj").weight[:, 9] = 0
    model, _ = applied(original, "llama")
    assert error(model, original, "llama") < 0.1


def test_weights_that_are_not_finite_are_an_error() -> None:
    model = models.tiny("llama", task="lm")
    view(model, "model.layers.0.self_attn.q_proj").weight[0, 0] = float("nan")
    with pytest.raises(CompressKitError) as caught:
        applied(model, "llama")
    assert caught.value.code in ("CK-M054", "CK-D012")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_16_bits_are_smoothed_too(dtype: torch.dtype) -> None:
    _, context = applied(outlying("llama").to(dtype), "llama")
    assert {"norm", "values", "up"} <= {detail["smoothing"] for detail in context.details.values()}
