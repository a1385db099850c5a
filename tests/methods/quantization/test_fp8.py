"""quantization.fp8 on tiny models: sizes, files, and the ONNX file."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.save import save_checkpoint
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.export import export_onnx
from compresskit.methods.quantization.fp8 import Fp8
from compresskit.nn.fp8 import Float8Linear
from compresskit.numerics import fp8
from compresskit.pipeline.ledger import size_of
from tests import models


@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_close_to_the_model_and_as_small_as_predicted(per: str) -> None:
    original, method = models.tiny("gpt2"), Fp8.model_validate({"per": per})
    model, context = copy.deepcopy(original), Context()
    sites = resolve(model, method).sites
    method.apply(model, sites, context)
    assert size_of(original).bytes - size_of(model).bytes == method.predicted_saving(original, sites)
    assert all(8 <= row["bits_per_weight"] < 8.6 for row in context.details.values())
    assert all(0.01 < row["relative_error"] < 0.04 for row in context.details.values())
    batch = models.inputs("gpt2")
    expected, found = models.output(original, batch), models.output(model, batch)
    assert float(torch.cosine_similarity(expected.flatten(), found.flatten(), dim=0)) > 0.995


def test_saved_loaded_in_other_types_and_exported(tmp_path: Path) -> None:
    model, batch = models.tiny("bert", num_hidden_layers=1), models.inputs("bert", padded=True, seed=9)
    Fp8().apply(model, resolve(model, Fp8()).sites, Context())
    folder = save_checkpoint(model.eval(), tmp_path / "saved").path
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
        kinds = {file.get_slice(name).get_dtype() for name in names if name.endswith("codes")}
    assert kinds == {"F8_E4M3"}
    assert torch.equal(models.output(load_model(folder), batch), models.output(model, batch))
    half = type(model).from_pretrained(folder, dtype=torch.bfloat16)
    layer = half.get_submodule("encoder.layer.0.intermediate.dense")
    assert isinstance(layer, Float8Linear)
    assert (layer.codes.dtype, layer.scale.dtype, layer.dtype) == (fp8.TYPE, torch.float32, torch.bfloat16)
    report = export_onnx(folder, tmp_path / "model.onnx")
    assert report.held_to == "float"
    weights = sum(each.stat().st_size for each in folder.glob("*.safetensors"))
    assert all(size <= weights + 400_000 for size in report.files.values())
