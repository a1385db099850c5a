"""gptq, awq and hqq on tiny models, against round-to-nearest on inputs that calibration has not seen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.blocks import BlockCalibration
from compresskit.calibrate.moments import input_samples
from compresskit.core import anatomy
from compresskit.core.compressor import Compressor
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.core.weights import view
from compresskit.errors import DataError
from compresskit.methods.quantization import _calibrated
from compresskit.methods.quantization._fold import alike, fold, norm_before
from compresskit.methods.quantization.awq import Awq
from compresskit.methods.quantization.gptq import Gptq
from compresskit.methods.quantization.hqq import Hqq
from compresskit.methods.quantization.rtn import Rtn
from compresskit.nn.packed import PackedLinear
from compresskit.pipeline.ledger import size_of
from tests import models

CALIBRATED = [Gptq, Awq]


def batches(name: str, first: int = 0, count: int = 6) -> list[dict[str, Tensor]]:
    return [models.inputs(name, batch=8, length=16, padded=True, seed=first + seed) for seed in range(count)]


def compressed(model: PreTrainedModel, method: Compressor, name: str) -> tuple[PreTrainedModel, Context]:
    """Walked block by block, as the pipeline does."""
    result, context = copy.deepcopy(model), Context(calibration=BlockCalibration(batches(name)))
    sites = resolve(result, method).sites
    if method.walk == "block":
        for block in anatomy.of(result).blocks:
            context.calibration.enter(result, block.path)  # type: ignore[attr-defined]
            method.apply(result, [site for site in sites if site.block == block.path], context)
    else:
        method.apply(result, sites, context)
    return result, context


def uneven(name: str) -> PreTrainedModel:
    """A model with some features far larger than others, as trained ones have."""
    model = models.tiny(name)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" in path.lower() or "ln_" in path:
                parameter[::16] *= 8
    return model


@pytest.mark.parametrize("method", CALIBRATED)
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_smaller_output_error_than_rounding_on_fresh_inputs(method: type[Compressor], name: str) -> None:
    original = uneven(name)
    model, context = compressed(original, method(bits=3), name)  # type: ignore[call-arg]
    plain, _ = compressed(original, Rtn(bits=3), name)
    fresh = batches(name, 50)
    first = anatomy.of(original).blocks[0].path
    paths = [path for path in context.details if path.startswith(f"{first}.")]
    better = nearest = 0.0
    for path in paths:
        # Where scales went into the norm, the layer's own input is what it is made for.
        layer = model.get_submodule(path)
        assert isinstance(layer, PackedLinear)
        if context.details[path].get("scales") == "norm":
            continue
        rows = input_samples(original, [path], fresh, 300)[path]
        expected = rows @ view(original, path).weight.T
        better += float((rows @ layer.weight.T - expected).square().sum())
        nearest += float((rows @ plain.get_submodule(path).weight.T - expected).square().sum())  # type: ignore[operator]
    assert better < nearest
    errors = [
        sum(float((models.output(each, batch) - models.output(original, batch)).square().sum()) for batch in fresh)
        for each in (model, plain)
    ]
    assert errors[0] < errors[1]


def test_hqq_is_closer_than_rounding() -> None:
    original = models.tiny("bert")
    found = compressed(original, Hqq(bits=3), "bert")[1].details
    plain = compressed(original, Rtn(bits=3, search=False), "bert")[1].details
    assert all(found[path]["relative_error"] < plain[path]["relative_error"] for path in plain)


@pytest.mark.parametrize("method", [Gptq, Hqq])
def test_sizes_are_predicted(method: type[Compressor]) -> None:
    original, made = models.tiny("gpt2"), method(bits=3, per="channel")  # type: ignore[call-arg]
    model, _ = compressed(original, made, "gpt2")
    assert size_of(original).bytes - size_of(model).bytes == made.predicted_saving(
        original, resolve(original, made).sites
    )


def test_a_feature_with_huge_values_hides_no_change_of_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn(2, 6, 8, generator=generator)
    expected[..., 3] *= 3000
    rounded = expected * (1 + 1e-6 * torch.randn(expected.shape, generator=generator))
    assert alike(rounded, expected)
    changed = rounded.clone()
    changed[0, 0, 5] += 0.05
    assert not alike(changed, expected)
    assert alike(torch.zeros(2, 4), torch.zeros(2, 4))


def test_scales_go_into_the_norm_where_only_the_sites_read_it() -> None:
    model, context = compressed(uneven("llama"), Awq(bits=3), "llama")
    kinds = {path: detail["scales"] for path, detail in context.details.items()}
    assert "norm" in kinds.values()
    for path, kind in kinds.items():
        assert (model.get_submodule(path).input_scale is not None) == (kind == "layer")
        assert kind != "norm" or not path.endswith(("o_proj", "down_proj"))
    post_norm = compressed(uneven("bert"), Awq(bits=3), "bert")[1].details
    assert "norm" not in {detail["scales"] for detail in post_norm.values()}, "the residual reads the norm too"
    unfolded = compressed(uneven("llama"), Awq(bits=3, fold=False), "llama")[1].details
    assert "norm" not in {detail["scales"] for detail in unfolded.values()}


def test_folding_changes_nothing_or_is_undone() -> None:
    model, batch = uneven("llama"), batches("llama")[0]
    expected, paths = models.output(model, batch), [f"layers.0.self_attn.{name}_proj" for name in "qkv"]
    norm = norm_before(model, paths[0], models.HIDDEN, [batch])
    assert norm == "layers.0.input_layernorm"
    scale, weight = torch.rand(models.HIDDEN) + 0.5, model.get_parameter(f"{norm}.weight").detach().clone()
    assert not fold(model, norm, [view(model, paths[0])], scale, [batch]), "keys and values read it too"
    assert torch.equal(models.output(model, batch), expected)
    assert fold(model, norm, [view(model, path) for path in paths], scale, [batch])
    torch.testing.assert_close(model.get_parameter(f"{norm}.weight").detach(), weight / scale)
    torch.testing.assert_close(models.output(model, batch), expected, rtol=1e-3, atol=1e-4)
    assert norm_before(model, "layers.0.self_attn.o_proj", models.HIDDEN, [batch]) is None


@pytest.mark.parametrize("method", CALIBRATED)
def test_no_calibration_is_an_error(method: type[Compressor]) -> None:
    model, made = models.tiny("bert"), method()
    with pytest.raises(DataError) as caught:
        made.apply(model, resolve(model, made).sites, Context())
    assert caught.value.code == "CK-D003"


@pytest.mark.parametrize("method", CALIBRATED)
def test_statistics_that_are_not_finite_are_an_error(method: type[Compressor]) -> None:
    model, made = models.tiny("bert"), method()
    sites = resolve(model, made).sites
    with torch.no_grad():
        model.get_submodule("embeddings.LayerNorm").weight[0] = float("nan")  # type: ignore[index, operator]
    with pytest.raises(DataError) as caught:
        made.apply(model, sites, Context(calibration=batches("bert")))
    assert caught.value.code == "CK-D012"


@pytest.mark.parametrize("method", CALIBRATED)
def test_dead_inputs_and_rows(method: type[Compressor]) -> None:
    model = models.tiny("bert")
    with torch.no_grad():
        norm: Any = model.get_submodule("embeddings.LayerNorm")
        norm.weight[3] = norm.bias[3] = 0
    view(model, "encoder.layer.0.attention.self.query").weight[2] = 0
    found, _ = compressed(model, method(bits=4), "bert")  # type: ignore[call-arg]
    assert bool(models.output(found, batches("bert", 50)[0]).isfinite().all())
    layer: Any = found.get_submodule("encoder.layer.0.attention.self.query")
    assert bool((layer.weight[2] == 0).all())


def test_moments_that_cannot_be_inverted_fall_back_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.linalg.LinAlgError("can't be inverted")

    monkeypatch.setattr(_calibrated, "gptq", fail)
    original, warnings = models.tiny("bert"), list[str]()
    method = Gptq(targets=("encoder.layer.0",))
    sites = resolve(original, method).sites
    context = Context(calibration=batches("bert"), warn=warnings.append)
    method.apply(original, sites, context)
    assert len(warnings) == len(sites)
    assert {detail["fallback"] for detail in context.details.values()} == {"nearest"}
