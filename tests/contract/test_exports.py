"""The ten artifacts as ONNX files: checked in ONNX Runtime against the compressed model, sizes and integers audited."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compresskit.checkpoint.save import save_checkpoint
from compresskit.export import export_onnx, parity
from compresskit.nn.int8 import Int8Linear
from tests import models
from tests.contract.artifacts import ARTIFACTS, make
from tests.export.conftest import run

CASES: list[tuple[str, str, models.Task]] = [(artifact, "bert", "base") for artifact in ARTIFACTS]
CASES += [(artifact, "gpt2", "lm") for artifact in ("quantization", "prune-svd-int8")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("artifact", "name", "task"), CASES)
def test_exported_artifact(artifact: str, name: str, task: models.Task, tmp_path: Path) -> None:
    """Float artifacts within 1e-4; integer ones by mean cosine on inputs that the export's own check didn't see."""
    model = make(artifact, name, task, tmp_path / "work")
    folder = save_checkpoint(model, tmp_path / "saved").path
    report = export_onnx(folder, tmp_path / "model.onnx")
    integers = sum(isinstance(module, Int8Linear) for module in model.modules())
    assert report.held_to == ("token" if integers else "float")
    assert all(graph.audit.integer_layers == integers for graph in report.graphs.values())
    batch = models.inputs(name, batch=4, length=21, padded=True, seed=11)
    expected, mask = models.output(model, batch), batch["attention_mask"].bool()
    found = torch.from_numpy(next(iter(run(report.path, batch).values())))
    if report.held_to == "float":
        assert report.max_difference <= parity.FLOAT_TOLERANCE
        largest = max(1.0, float(expected[mask].abs().max()))
        assert float((expected - found)[mask].abs().max()) <= 1e-4 * largest
    else:
        cosine = torch.cosine_similarity(expected[mask].double(), found[mask].double(), dim=-1)
        assert float(cosine.mean()) >= 0.9995
    # A shared layer is stored once in the file too.
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert np.all([size <= weights + 400_000 for size in report.files.values()])
