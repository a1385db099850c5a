"""Plans: what would happen, and every mistake before any weight is touched (F39-F43, F46)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compresskit import pipeline
from compresskit.errors import RecipeError, UsageError
from compresskit.pipeline.plan import require_same
from tests.pipeline.conftest import recipe


def test_plan_lists_sites_and_predicts_bytes(source: Path) -> None:
    made = pipeline.plan(source, recipe({"pruning.ffn": {"keep": 0.5}}, "quantization.int8"))
    assert [step.method for step in made.steps] == ["pruning.ffn", "quantization.int8"]
    assert len(made.steps[0].sites) == 3
    assert len(made.steps[1].sites) == 18
    assert made.predicted_bytes is not None
    assert made.predicted_bytes < made.bytes_before
    assert json.loads(json.dumps(made.to_dict())) == made.to_dict()


def test_prediction_is_close_to_what_apply_reaches(source: Path, tmp_path: Path) -> None:
    steps = recipe({"pruning.ffn": {"keep": 0.5}}, "quantization.int8", gates={"size": "<= 0.01x"})
    made = pipeline.plan(source, steps)
    result = pipeline.apply(source, steps)
    assert made.predicted_bytes == pytest.approx(result.after["disk_bytes"], rel=0.2)
    assert result.warnings == ["no output folder was given: gates left out, they look at the files"]


@pytest.mark.parametrize(
    ("gate", "code", "says"),
    [
        ({"sizes": "<= 0.5x"}, "CK-G002", "did you mean 'size'"),
        ({"size": "<= 5ms"}, "CK-G003", "seconds"),
        ({"parameters": ">= -1pp"}, "CK-G003", "pp is for scores"),
    ],
)
def test_a_gate_that_no_result_can_be_checked_against(source: Path, gate: dict[str, str], code: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        pipeline.plan(source, recipe("quantization.int8", gates=gate))
    assert caught.value.code == code


def test_points_of_perplexity_are_refused_before_it_is_measured(source: Path, tmp_path: Path) -> None:
    steps = recipe("quantization.int8", evaluate={"task": "language_modelling", "data": str(tmp_path / "texts.jsonl")})
    with pytest.raises(RecipeError) as caught:
        pipeline.plan(source, steps, options=pipeline.Options(max_drop=1.0))
    assert caught.value.code == "CK-G003"


def test_f39_target_matches_nothing(source: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        pipeline.plan(source, recipe({"pruning.ffn": {"targets": ["encoder.layr.*.intermediate"]}}))
    assert caught.value.code == "CK-T010"
    assert "encoder.layer.0.intermediate" in caught.value.fix


def test_f40_ignore_matches_nothing_and_all_ignored(source: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        pipeline.plan(source, recipe({"quantization.int8": {"ignore": ["*.poler.*"]}}))
    assert caught.value.code == "CK-T011"
    with pytest.raises(RecipeError) as caught:
        pipeline.plan(source, recipe({"pruning.ffn": {"ignore": ["encoder.*"]}}))
    assert caught.value.code == "CK-T012"


def test_f41_f42_a_later_step_finds_its_site_taken(source: Path) -> None:
    steps = recipe("quantization.int8", {"decomposition.svd": {"ratio": 0.5}})
    with pytest.raises(RecipeError) as caught:
        pipeline.plan(source, steps)
    assert caught.value.code == "CK-T010"
    assert "step 1 (quantization.int8)" in caught.value.why
    exact = "encoder.layer.0.attention.self.query"
    with pytest.raises(RecipeError) as caught:
        pipeline.plan(
            source,
            recipe("quantization.int8", {"decomposition.svd": {"ratio": 0.5, "targets": [exact]}}),
        )
    assert exact in caught.value.why


def test_factors_of_an_earlier_step_can_be_taken(source: Path) -> None:
    made = pipeline.plan(source, recipe({"decomposition.svd": {"ratio": 0.5}}, "quantization.int8"))
    assert "encoder.layer.0.attention.self.query.down" in made.steps[1].sites


def test_unwise_order_is_a_warning(source: Path) -> None:
    made = pipeline.plan(source, recipe({"quantization.embedding": {"bits": 8}}, {"pruning.ffn": {"keep": 0.5}}))
    assert any("quantizes before" in warning for warning in made.warnings)
    shared = pipeline.plan(source, recipe({"sharing.layers": {"groups": [[1, 2]]}}))
    assert any("no recovery follows" in warning for warning in shared.warnings)


def test_f46_nothing_asked_is_a_warning_and_strict_an_error(source: Path) -> None:
    steps = recipe({"pruning.ffn": {"keep": 1.0}})
    assert any("asks for nothing" in warning for warning in pipeline.plan(source, steps).warnings)
    with pytest.raises(RecipeError) as caught:
        pipeline.plan(source, steps, options=pipeline.Options(strict=True))
    assert caught.value.code == "CK-R030"


def test_no_model_named() -> None:
    with pytest.raises(UsageError) as caught:
        pipeline.plan(None, recipe("quantization.int8"))
    assert caught.value.code == "CK-U010"


def test_saved_plan_is_bound_to_recipe_and_model(source: Path, tmp_path: Path) -> None:
    made = pipeline.plan(source, recipe("quantization.int8"))
    pipeline.save_plan(made, tmp_path / "p.ckplan")
    assert pipeline.load_plan(tmp_path / "p.ckplan") == made
    other = pipeline.plan(source, recipe({"quantization.int8": {"activations": "tensor"}}))
    with pytest.raises(UsageError) as caught:
        require_same(other, made)
    assert caught.value.code == "CK-U017"
    (tmp_path / "broken.ckplan").write_text('{"version": 1}')
    for name in ("broken.ckplan", "absent.ckplan"):
        with pytest.raises(UsageError) as caught:
            pipeline.load_plan(tmp_path / name)
        assert caught.value.code == "CK-U011"
