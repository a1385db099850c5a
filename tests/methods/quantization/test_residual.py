"""quantization.residual on tiny models, against the same bits without a correction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.save import save_checkpoint
from compresskit.core.compressor import Compressor
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.errors import RecipeError
from compresskit.export import export_onnx
from compresskit.methods.quantization.gptq import Gptq
from compresskit.methods.quantization.residual import Residual
from compresskit.methods.quantization.rtn import Rtn
from compresskit.nn.residual import ResidualLinear
from compresskit.pipeline.ledger import size_of
from tests import models
from tests.methods.quantization.test_calibrated import batches, compressed, uneven


def lost(original: PreTrainedModel, method: Compressor, name: str) -> float:
    """Squared change of the outputs on inputs that calibration hasn't seen."""
    model, _ = compressed(original, method, name)
    fresh = batches(name, 50, 3)
    return sum(float((models.output(model, batch) - models.output(original, batch)).square().sum()) for batch in fresh)


def test_better_than_the_same_codes_alone() -> None:
    name = "llama"
    original = uneven(name)
    assert lost(original, Residual(bits=3, rank=8), name) < lost(original, Gptq(bits=3), name)
    nearest = lost(original, Rtn(bits=3), name)
    plain = lost(original, Residual(bits=3, rank=8, rounding="nearest", whiten=False), name)
    assert lost(original, Residual(bits=3, rank=8, rounding="nearest"), name) < plain < nearest


def test_the_ledger_says_what_was_gained_and_what_it_costs() -> None:
    original, method = uneven("gpt2"), Residual(bits=3, rank=6, targets=("h.0",))
    sites = resolve(original, method).sites
    model, context = compressed(original, method, "gpt2")
    assert size_of(original).bytes - size_of(model).bytes == method.predicted_saving(original, sites)
    assert len(context.details) == len(sites) == 4
    for path, row in context.details.items():
        layer = model.get_submodule(path)
        assert isinstance(layer, ResidualLinear)
        assert row["output_error"] < row["uncorrected_error"]
        bias = layer.bias.numel() * 4  # type: ignore[union-attr]
        count = layer.in_features * layer.out_features
        assert row["bits_per_weight"] == pytest.approx(8 * (layer.stored_bytes() - bias) / count, abs=1e-3)
        assert row["rank"] == layer.rank == 6


def test_full_rank_recovers_the_matrix() -> None:
    original, model = models.tiny("bert"), models.tiny("bert")
    path = "encoder.layer.1.intermediate.dense"
    # Such factors are larger than the matrix, so the method itself refuses it.
    sites = resolve(model, Rtn(targets=(path,))).sites
    Residual(bits=4, rank=64, factor_bits=16).apply(model, sites, Context(calibration=batches("bert")))
    layer = model.get_submodule(path)
    assert isinstance(layer, ResidualLinear)
    torch.testing.assert_close(layer.weight.detach() + 0, original.get_parameter(f"{path}.weight").data)


def test_without_moments_it_needs_no_data() -> None:
    method = Residual(whiten=False, rounding="nearest", rank=2)
    assert method.requirements() == frozenset()
    assert "calibration" in Residual(rounding="nearest").requirements()
    model = models.tiny("bert")
    method.apply(model, resolve(model, method).sites, Context())
    assert any(isinstance(module, ResidualLinear) for module in model.modules())


def test_factors_that_would_not_pay_are_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(models.tiny("bert"), Residual(rank=64, factor_bits=16))
    assert caught.value.code == "CK-T014"
    assert "lower rank" in caught.value.why


def test_saved_loaded_and_exported(tmp_path: Path) -> None:
    model, _ = compressed(models.tiny("bert", num_hidden_layers=1), Residual(bits=4, rank=32), "bert")
    batch = models.inputs("bert", padded=True, seed=9)
    folder = save_checkpoint(model.eval(), tmp_path / "saved").path
    assert torch.equal(models.output(load_model(folder), batch), models.output(model, batch))
    report = export_onnx(folder, tmp_path / "model.onnx", profile="fast")
    assert report.held_to == "float"
    packed = sum(graph.audit.operators.get("MatMulNBits", 0) for graph in report.graphs.values())
    assert packed == 18, "six matrices, and two factors of each"
