"""``quantization.static_int8``: closer than without smoothing and searched ranges; what is left float; V's rows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.surgery import share_module
from compresskit.core.targets import resolve
from compresskit.errors import CompressKitError, DataError
from compresskit.methods.quantization.static_int8 import StaticInt8
from compresskit.nn.static_int8 import StaticInt8Linear
from tests import models
from tests.contract.conformance import batches_of, head_of


def quantized(original: PreTrainedModel, name: str, **options: Any) -> tuple[PreTrainedModel, Context, list[str]]:
    """A quantized copy, the context that tells of it, and its warnings."""
    model, warnings = copy.deepcopy(original), list[str]()
    context = Context(calibration=batches_of(name), warn=warnings.append)
    method = StaticInt8.model_validate(options)
    blocks: dict[str | None, list[Site]] = {}
    for site in resolve(model, method).sites:
        blocks.setdefault(site.block, []).append(site)
    for sites in blocks.values():
        method.apply(model, sites, context)
    return model.eval(), context, warnings


def outlying(name: str) -> PreTrainedModel:
    """A model whose attention reads some channels that are 30 times as large as others."""
    model = models.tiny(name, task=head_of(name))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "LayerNorm.weight" in parameter_name or "layernorm.weight" in parameter_name:
                parameter[3] *= 30
    return model


def error(model: PreTrainedModel, original: PreTrainedModel, name: str) -> float:
    """Relative change of the outputs on inputs outside calibration."""
    batch = models.inputs(name, batch=6, length=14, padded=True, seed=77)
    mask = batch["attention_mask"].bool()
    found, exact = models.output(model, batch), models.output(original, batch)
    if name != "t5":
        found, exact = found[mask], exact[mask]
    return float((found - exact).norm() / exact.norm())


def test_every_architecture_stays_close(family: str) -> None:
    original = models.tiny(family, task=head_of(family))
    model, context, _ = quantized(original, family)
    layers = [path for path, module in model.named_modules() if isinstance(module, StaticInt8Linear)]
    assert layers == [site.path for site in resolve(original, StaticInt8()).sites]
    assert set(context.details) == set(layers)
    assert error(model, original, family) < 0.1


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_smoothing_helps_where_channels_stand_out(name: str) -> None:
    original = outlying(name)
    plain, _, _ = quantized(original, name, smooth=False, rounding="nearest")
    smooth, context, _ = quantized(original, name, rounding="nearest")
    assert error(smooth, original, name) < 0.8 * error(plain, original, name)
    assert any(detail["smoothing"] not in (None, "folded") for detail in context.details.values())


def test_gptq_moves_outputs_less_than_the_nearest_codes() -> None:
    """Summed over layers, on calibration data, with the input float: the codes' own effect."""
    original = models.tiny("bert")
    nearest, near, _ = quantized(original, "bert", smooth=False, rounding="nearest")
    solved, found, _ = quantized(original, "bert", smooth=False)
    batch = batches_of("bert")[0]
    states: dict[str, torch.Tensor] = {}
    handles = [
        original.get_submodule(path).register_forward_pre_hook(lambda _, args, p=path: states.update({p: args[0]}))
        for path in near.details
    ]
    models.output(original, dict(batch))
    for handle in handles:
        handle.remove()

    def moved(model: PreTrainedModel) -> float:
        mask = batch["attention_mask"].bool()
        total = 0.0
        for path, x in states.items():
            change = model.get_submodule(path).weight - original.get_submodule(path).weight
            total += float((x[mask] @ change.detach().T).square().sum())
        return total

    assert found.details.keys() == near.details.keys()
    assert moved(solved) < moved(nearest)


def test_values_take_over_what_the_output_projection_can_t_hold() -> None:
    original = models.tiny("bert")
    with torch.no_grad():
        for block in original.encoder.layer:
            block.attention.self.value.weight[5] *= 40
            block.attention.self.value.bias[5] *= 40
    model, context, _ = quantized(original, "bert", rounding="nearest")
    folded = [path for path, detail in context.details.items() if detail["smoothing"] == "folded"]
    assert folded == [f"encoder.layer.{index}.attention.output.dense" for index in range(3)]
    for path in folded:
        assert model.get_submodule(path).input_multiplier is None, "folding costs nothing at run time"


def test_sensitive_sites_stay_float_and_are_named() -> None:
    original = outlying("bert")
    model, context, warnings = quantized(original, "bert", smooth=False, largest_error=2e-4)
    left = [path for path, detail in context.details.items() if detail.get("left_float")]
    assert left
    assert len(left) < len(context.details)
    assert all(path in " ".join(warnings) for path in left)
    assert all(not isinstance(model.get_submodule(path), StaticInt8Linear) for path in left)
    assert error(model, original, "bert") < error(quantized(original, "bert", smooth=False)[0], original, "bert")


def test_layers_that_share_parameters_share_a_range_that_holds_the_inputs_of_all() -> None:
    """The scale of a shared matrix is made from what every block feeds it, not from the first block's inputs alone."""
    original = models.tiny("bert")
    with torch.no_grad():
        original.encoder.layer[1].output.LayerNorm.weight.mul_(6)  # what the second user of the matrices reads
    for name in ("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense"):
        share_module(original, f"encoder.layer.1.{name}", f"encoder.layer.2.{name}")
    model, _, _ = quantized(original, "bert")
    first, second = (model.encoder.layer[index].intermediate.dense for index in (1, 2))
    assert first.weight_codes is second.weight_codes
    assert first.input_scale is second.input_scale
    assert error(model, original, "bert") < 0.15


def test_moments_that_can_t_be_inverted_fall_back_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.linalg.LinAlgError("not positive-definite")

    original = models.tiny("bert")
    monkeypatch.setattr("compresskit.methods.quantization.static_int8.gptq_codes", fail)
    model, _, warnings = quantized(original, "bert")
    assert len(warnings) == 18
    assert all("rounded to nearest" in warning for warning in warnings)
    assert error(model, original, "bert") < 0.1


def test_weights_that_aren_t_finite_are_an_error() -> None:
    model = models.tiny("bert")
    with torch.no_grad():
        model.encoder.layer[0].intermediate.dense.weight[0, 0] = float("inf")
    with pytest.raises(CompressKitError):
        quantized(model, "bert")


@pytest.mark.parametrize("rule", ["minmax", "percentile", "mse", "entropy"])
def test_every_rule_of_ranges(rule: str) -> None:
    original = models.tiny("bert")
    model, _, _ = quantized(original, "bert", calibration=rule, rounding="nearest")
    assert error(model, original, "bert") < 0.1


def test_without_calibration_data_there_is_no_range() -> None:
    model = models.tiny("bert")
    with pytest.raises(DataError):
        StaticInt8().apply(model, resolve(model, StaticInt8()).sites, Context())


@pytest.mark.parametrize("options", [{"calibration": "max"}, {"percentile": 0.2}, {"damping": 0}, {"rounding": "up"}])
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        StaticInt8.model_validate(options)
