"""The verbs that run the pipeline, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compresskit.cli.main import main
from tests import models

RECIPE = """version: 1
calibration: {samples: 12, max_length: 24}
steps:
  - pruning.ffn: {keep: 0.5}
  - quantization.int8
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verbs")
    models.write_checkpoint(models.tiny("bert"), folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(autouse=True)
def _few_held_out_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compresskit.pipeline.data.HELD_OUT", 12)


def _last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    result: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def test_apply_then_report_verify_inspect(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, recipe, out = str(work / "model"), str(work / "recipe.yaml"), str(work / "out")
    assert main(["apply", recipe, "--model", model, "--output", out, "--json"]) == 0
    result = _last_json(capsys)
    assert {"output", "native", "steps", "before", "after", "reload_max_abs_diff", "fidelity", "warnings"} <= set(
        result
    )
    assert main(["verify", out, "--json"]) == 0
    assert _last_json(capsys)["reload_max_abs_diff"] == 0.0
    page = work / "page.html"
    assert main(["report", out, "--output", str(page)]) == 0
    assert "pruning.ffn" in page.read_text()
    assert main(["inspect", out, "--no-time", "--match", "*.query", "--json"]) == 0
    assert main(["apply", recipe, "--model", model, "--output", out]) == 2, "an existing output is kept"
    assert main(["verify", str(work / "model")]) == 3, "no manifest"


def test_plan_and_a_saved_plan(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, recipe, saved = str(work / "model"), str(work / "recipe.yaml"), str(work / "p.ckplan")
    assert main(["plan", recipe, "--model", model, "--output", saved, "--json"]) == 0
    steps = _last_json(capsys)["steps"]
    assert isinstance(steps, list)
    assert [step["method"] for step in steps] == ["pruning.ffn", "quantization.int8"]
    assert main(["apply", saved, "--model", model, "--dry-run"]) == 0
    assert "pruning.ffn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["apply", "{recipe}", "--model", "{absent}", "--output", "{out}"], 3),
        (["apply", "{absent}", "--model", "{model}", "--output", "{out}"], 2),
        (["apply", "{recipe}", "--model", "{model}"], 2),
        (["plan", "{recipe}"], 2),
        (["report", "{absent}"], 3),
        (["verify", "{absent}"], 3),
    ],
)
def test_mistakes_end_in_one_error_and_nothing_written(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int
) -> None:
    words = {
        "recipe": str(work / "recipe.yaml"),
        "model": str(work / "model"),
        "absent": str(tmp_path / "absent"),
        "out": str(tmp_path / "out"),
    }
    assert main([argument.format(**words) for argument in arguments]) == status
    assert capsys.readouterr().err.count("error[CK-") == 1
    assert list(tmp_path.iterdir()) == []
