"""Small runs: few texts, short ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import models

CALIBRATION = {"samples": 12, "max_length": 24}


def recipe(*steps: Any, **more: Any) -> dict[str, Any]:
    """A recipe of ``steps`` on little data."""
    return {"version": 1, "calibration": CALIBRATION, "steps": list(steps), **more}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a tokenizer, shared by the tests of a session, which don't change it."""
    return models.write_checkpoint(models.tiny("bert"), tmp_path_factory.mktemp("source") / "bert")


@pytest.fixture(autouse=True)
def _few_held_out_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compresskit.pipeline.data.HELD_OUT", 12)
