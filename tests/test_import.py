"""``import compresskit`` is cheap, registers the loader once and in time, and offers its names lazily."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import transformers.quantizers.auto

import compresskit
from compresskit.checkpoint.load import METHOD, LayoutLoader

_CHEAP = """
import json, sys, time
started = time.process_time()
import compresskit
seconds = time.process_time() - started
heavy = [name for name in ("torch", "transformers", "pydantic", "numpy", "yaml", "rich") if name in sys.modules]
found = sorted(set(compresskit.__all__) - set(dir(compresskit)))
print(json.dumps([seconds, heavy, found]))
"""

_LATER = """
import sys
import compresskit
import transformers
assert "transformers.quantizers.auto" not in sys.modules
from transformers import AutoModel, BertModel
import transformers.quantizers.auto as registry
print(registry.AUTO_QUANTIZER_MAPPING["compresskit"].__name__)
"""


def run(script: str, project_root: Path) -> str:
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, timeout=100, check=True)
    return done.stdout.strip()


def test_the_import_is_cheap(project_root: Path) -> None:
    seconds, heavy, hidden = min(json.loads(run(_CHEAP, project_root)) for _ in range(5))
    assert heavy == []
    assert hidden == []
    assert seconds < 0.05


def test_the_loader_is_registered_when_transformers_comes_later(project_root: Path) -> None:
    assert run(_LATER, project_root) == "LayoutLoader"


def test_the_loader_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = transformers.quantizers.auto
    assert registry.AUTO_QUANTIZER_MAPPING[METHOD] is LayoutLoader

    def finders() -> int:
        return sum(type(finder).__name__ == "_LoaderFinder" for finder in sys.meta_path)

    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    assert finders() == 1
    importlib.reload(compresskit)
    assert finders() == 1
    assert registry.AUTO_QUANTIZER_MAPPING[METHOD] is LayoutLoader


def test_the_loader_survives_a_reload_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = transformers.quantizers.auto
    before = dict(vars(registry))
    try:
        importlib.reload(registry)
        assert registry.AUTO_QUANTIZER_MAPPING is not before["AUTO_QUANTIZER_MAPPING"]
        assert registry.AUTO_QUANTIZER_MAPPING[METHOD] is LayoutLoader
    finally:
        vars(registry).update(before)


def test_other_imports_pass_by() -> None:
    finder = next(finder for finder in sys.meta_path if type(finder).__name__ == "_LoaderFinder")
    assert finder.find_spec("json") is None
    assert finder.find_spec("transformers.quantizers.base") is None


def test_names() -> None:
    from compresskit import registry
    from compresskit.core.compressor import Compressor

    assert compresskit.Compressor is Compressor
    assert compresskit.register is registry.register
    assert set(compresskit.__all__) <= set(dir(compresskit))
    with pytest.raises(AttributeError, match="nothing_here"):
        compresskit.nothing_here  # noqa: B018


def test_the_version_is_that_of_the_project(project_root: Path) -> None:
    project = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert compresskit.__version__ == project["version"]
