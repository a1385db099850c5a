"""What the tests of faults share: checkpoints to damage, and the report of the process that is killed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import BertModel

from compresskit.checkpoint.save import save_checkpoint
from tests import models
from tests.conftest import ROOT
from tests.faults.victim import small_model, state

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="session")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``tests.faults.victim`` found; made once, also when several workers ask."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    report = shared / "killed.json"
    with (shared / "killed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not report.is_file():
            folder = shared / "killed"
            folder.mkdir()
            ran = subprocess.run(
                [sys.executable, "-m", "tests.faults.victim", str(folder)],
                cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
            assert ran.returncode == 0, ran.stderr
            report.write_text(ran.stdout)
    found: dict[str, Any] = json.loads(report.read_text())
    return found


class Folder:
    """A small checkpoint on disk that a test damages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights = path / "model.safetensors"

    def tensors(self, change: Change) -> Path:
        """Change the tensors of the weight file."""
        content = load_file(self.weights)
        change(content)
        save_file(content, self.weights, metadata={"format": "pt"})
        return self.path

    def json(self, change: Change, name: str = "config.json") -> Path:
        """Change the object in a JSON file."""
        content = json.loads((self.path / name).read_text())
        change(content)
        (self.path / name).write_text(json.dumps(content))
        return self.path


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Undamaged checkpoints, to be copied."""
    folder = tmp_path_factory.mktemp("originals")
    models.write_checkpoint(models.tiny("bert"), folder / "bert", with_tokenizer=False)
    models.write_checkpoint(models.tiny("gpt2", task="lm"), folder / "gpt2", with_tokenizer=False)
    models.tiny("bert").save_pretrained(folder / "sharded", max_shard_size="200KB")
    save_checkpoint(models.tiny("bert"), folder / "ours", extra_files={"notes.txt": "x"})
    return folder


@pytest.fixture
def bert(tmp_path: Path, originals: Path) -> Folder:
    """A tiny BERT."""
    return Folder(Path(shutil.copytree(originals / "bert", tmp_path / "bert")))


@pytest.fixture
def gpt2(tmp_path: Path, originals: Path) -> Folder:
    """A tiny GPT-2 with its tied language head."""
    return Folder(Path(shutil.copytree(originals / "gpt2", tmp_path / "gpt2")))


@pytest.fixture
def sharded(tmp_path: Path, originals: Path) -> Folder:
    """A tiny BERT in several weight files."""
    return Folder(Path(shutil.copytree(originals / "sharded", tmp_path / "sharded")))


@pytest.fixture
def ours(tmp_path: Path, originals: Path) -> Folder:
    """A checkpoint that we wrote, with a manifest."""
    return Folder(Path(shutil.copytree(originals / "ours", tmp_path / "ours")))


@pytest.fixture(scope="module")
def model() -> BertModel:
    """The model that is saved."""
    return small_model(2)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where it is saved: nothing is there."""
    return tmp_path / "out"


@pytest.fixture
def existing(out: Path) -> tuple[Path, dict[str, str]]:
    """An output that is there already, and its content."""
    save_checkpoint(small_model(1), out, extra_files={"README.md": "# old\n"})
    content = state(out)
    assert content is not None
    return out, content


def beside(path: Path) -> list[str]:
    """What lies in the same folder as ``path``."""
    return sorted(found.name for found in path.parent.iterdir() if found != path)
