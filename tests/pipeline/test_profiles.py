"""The choice among profiles, on figures that are given, and once on files that are made and measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compresskit.cli.main import main
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.errors import ExportError
from compresskit.methods.quantization.int8 import Int8
from compresskit.pipeline.profiles import Candidate, choose, profiles_for
from tests import models

FAST = Candidate("fast", 1.0, 1.0, (1.0, 1.0), 100, 0.997)


def portable(ratio: float, low: float, high: float, size: int = 100, cosine: float = 0.9999) -> Candidate:
    return Candidate("portable", ratio, ratio, (low, high), size, cosine)


@pytest.mark.parametrize(
    ("other", "least", "kept", "why"),
    [
        (portable(1.5, 1.4, 1.6), None, "fast", "1.50 times the time of fast"),
        (portable(0.5, 0.4, 0.6), None, "portable", "2.00 times the time of portable"),
        (portable(1.5, 1.4, 1.6), 0.999, "portable", "it keeps less than 0.999"),
        (portable(1.1, 0.9, 1.3, size=90), None, "portable", "as fast as portable, and not smaller"),
        (portable(1.015, 1.01, 1.02, size=90), None, "portable", "as fast as portable, and not smaller"),
        (portable(0.9, 0.8, 1.1, size=110), None, "fast", "as fast as fast, and not smaller"),
        (Candidate("portable", why="it could not be made: x"), None, "fast", "it could not be made: x"),
    ],
)
def test_choice(other: Candidate, least: float | None, kept: str, why: str) -> None:
    found = choose([FAST, other], least)
    assert [each.profile for each in found if each.kept] == [kept]
    assert next(each.why for each in found if not each.kept) == why
    assert all(each.why for each in found)


def test_nothing_keeps_enough() -> None:
    with pytest.raises(ExportError, match=r"fast 0\.99700, portable 0\.99990") as caught:
        choose([FAST, portable(1.5, 1.4, 1.6)], 0.99999)
    assert caught.value.code == "CK-X014"


@pytest.mark.timeout(600)
def test_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each profile is made and timed, and only the best is left."""
    from compresskit.checkpoint.save import save_checkpoint

    monkeypatch.setenv("COMPRESSKIT_BENCH_LOCK", str(tmp_path / "lock"))
    model = models.tiny("distilbert", n_layers=1)
    method = Int8()
    method.apply(model, resolve(model, method).sites, Context())
    assert profiles_for(model) == ["fast", "portable"]
    folder = save_checkpoint(model, tmp_path / "source", source=None).path
    place = tmp_path / "out" / "small.onnx"
    words = ["export", str(folder), "--onnx", str(place), "--profile", "auto", "--length", "8", "--json", "--quiet"]
    assert main([*words, "--min-cosine", "0.99999", "--seconds", "0.5"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = {each["profile"]: each for each in result["candidates"]}
    # Dynamic int8 activations lose more than 1e-5 of the cosine; float products with the same weights lose nothing.
    assert found["fast"]["cosine"] < 0.99999 < found["portable"]["cosine"]
    assert found["portable"]["kept"]
    assert not found["fast"]["kept"]
    assert all(each["milliseconds"] > 0 for each in found.values())
    assert result["profile"] == "portable"
    assert [path.name for path in place.parent.iterdir()] == ["small.onnx"]
    assert result["files"] == {"small.onnx": place.stat().st_size}
    assert main([*words[:4], "--min-cosine", "0.9"]) == 2
