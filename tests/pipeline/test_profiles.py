"""The choice among profiles, on figures that are given, and once on files that are made and measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from compresskit.checkpoint.source import open_source
from compresskit.cli.main import main
from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.errors import ExportError
from compresskit.export.parity import Case
from compresskit.export.report import ExportReport
from compresskit.methods.quantization.int8 import Int8
from compresskit.nn.int8 import Int8Linear
from compresskit.nn.static_int8 import StaticInt8Linear
from compresskit.pipeline import publish
from compresskit.pipeline.profiles import Candidate, choose, profiles_for
from compresskit.recipe import Recipe
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


def test_profiles_that_differ() -> None:
    """Fixed scales alone: static and portable would be one file. A dynamic layer beside them: three."""
    layer, other = StaticInt8Linear(8, 8, True), Int8Linear(8, 8, True, "token")
    assert profiles_for(nn.Sequential(nn.Linear(8, 8))) == ["fast", "portable"]  # type: ignore[arg-type]
    assert profiles_for(nn.Sequential(layer)) == ["fast", "static"]  # type: ignore[arg-type]
    assert profiles_for(nn.Sequential(layer, other)) == ["fast", "static", "portable"]  # type: ignore[arg-type]


def test_a_recipe_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which files are made is tested elsewhere; here, the recipe's words arrive, and the report tells the choice."""
    folder = models.write_checkpoint(models.tiny("distilbert", n_layers=1), tmp_path / "source")
    asked: dict[str, Any] = {}

    def stand_in(model: Any, target: Path, *, min_cosine: float | None, **about: Any) -> Any:
        asked.update(about, min_cosine=min_cosine, target=target)
        case = Case("model", "text", "last_hidden_state", (1, 2, 3), 0.0, 1.0, 1.0)
        return ExportReport(target, "portable", 21, "float", {}, {target.name: 7}, [case], 0.1, []), [FAST]

    monkeypatch.setattr(publish, "export_best", stand_in)
    wanted = Recipe.load(
        {
            "version": 1,
            "steps": [{"pruning.ffn": {"keep": 0.5}}],
            "export": {"onnx": {"profile": "auto", "min_cosine": 0.99}},
        }
    )
    assert wanted.export is not None
    assert wanted.export.onnx is not None
    content = publish._export(folder, open_source(folder), wanted.export.onnx)
    assert asked["min_cosine"] == 0.99
    assert asked["tokenizer"] is not None
    assert (content["profile"], content["output"]) == ("portable", "onnx/model.onnx")
    assert content["candidates"] == [FAST.to_dict()]


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
