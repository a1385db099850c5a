"""Whole models in few bits as ONNX files: held to the float rule, and no larger than their checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from compresskit import registry
from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.save import save_checkpoint
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.export import export_onnx, parity
from compresskit.export.trace import Profile
from tests import models
from tests.export.conftest import run

STEPS = {
    "few": [("quantization.awq", {"bits": 4, "fold": False}), ("quantization.embedding", {"bits": 5, "group": 16})],
    "levels": [("quantization.nf4", {"group": 32}), ("quantization.embedding", {"bits": 3, "group": 32})],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "steps", "profile"), [("bert", "few", "portable"), ("gpt2", "few", "fast"), ("bert", "levels", "fast")]
)
def test_exported(name: str, steps: str, profile: Profile, tmp_path: Path) -> None:
    model = copy.deepcopy(models.tiny(name, task="lm" if name == "gpt2" else "base"))
    batches = [models.inputs(name, batch=4, length=12, padded=True, seed=seed) for seed in range(3)]
    for method, options in STEPS[steps]:
        made = registry.method(method).model_validate(options)
        made.apply(model, resolve(model, made).sites, Context(calibration=batches))
    folder = save_checkpoint(model.eval(), tmp_path / "saved").path
    report = export_onnx(folder, tmp_path / "model.onnx", profile=profile)
    assert report.held_to == "float"
    whole = [case for case in report.parity if case.graph == "model"]
    assert max(case.difference for case in whole) <= parity.FLOAT_TOLERANCE
    step = [case.cosine_mean for case in report.parity if case.graph != "model"]
    assert all(cosine >= parity.FLOOR["token"] for cosine in step)
    blocks = sum(graph.audit.operators.get("MatMulNBits", 0) for graph in report.graphs.values())
    assert (blocks > 0) == (profile == "fast" and steps == "few")
    batch = models.inputs(name, batch=4, length=21, padded=True, seed=11)
    expected, mask = models.output(load_model(folder), batch), batch["attention_mask"].bool()
    found = torch.from_numpy(next(iter(run(report.path, batch).values())))
    largest = max(1.0, float(expected[mask].abs().max()))
    assert float((expected - found)[mask].abs().max()) <= 1e-4 * largest
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert all(size <= weights + 400_000 for size in report.files.values())
