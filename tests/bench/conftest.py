"""Tiny models as ONNX files, made once, and a profile that is over in a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compresskit.bench.schedule import PROFILES, Profile
from compresskit.export import export_onnx
from tests import models


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT's checkpoint with its tokenizer, and ``model.onnx`` in it."""
    folder = models.write_checkpoint(models.tiny("bert"), tmp_path_factory.mktemp("bert") / "tiny")
    export_onnx(folder, folder / "model.onnx")
    return folder


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2's checkpoint with its tokenizer, and both ONNX files in it."""
    folder = models.write_checkpoint(models.tiny("gpt2", task="lm"), tmp_path_factory.mktemp("gpt2") / "tiny")
    export_onnx(folder, folder / "model.onnx")
    return folder


@pytest.fixture(scope="session")
def brief() -> Profile:
    """Two sets of processes, a few short blocks each."""
    return replace(PROFILES["quick"], seconds=0.1, slice_seconds=0.003, least_blocks=4, most_blocks=4)
