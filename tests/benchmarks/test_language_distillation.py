"""The benchmark of language models: perplexity by hand, stories apart, rows that are kept, and what may change."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import language_distillation
from benchmarks.language_distillation import (
    ARMS,
    RESULTS,
    TRAINING,
    Bench,
    differing,
    fill,
    perplexity,
    step_of,
    summary,
)
from compresskit.core import anatomy
from tests import models

TEXTS = ["the cat sat on the mat", "a big dog", "good film we like it not but the book"]


@pytest.fixture
def data(shared_data: Path) -> Path:
    if not (shared_data / "models" / "stories260K").is_dir():
        pytest.skip("stories260K isn't there")
    return shared_data


def test_perplexity_is_of_all_predicted_tokens_alike() -> None:
    model, tokenizer = models.tiny("gpt2", task="lm"), models.tokenizer()
    nats, count = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=8)["input_ids"]])
        with torch.no_grad():
            log_p = model(ids).logits.log_softmax(-1)
        nats -= float(log_p[0, :-1].gather(-1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    assert perplexity(model, tokenizer, TEXTS, 8) == pytest.approx(math.exp(nats / count), rel=1e-5)


@pytest.mark.parametrize("arm", list(ARMS))
def test_every_arm_is_a_method_with_options_that_it_has_and_as_many_steps(arm: str) -> None:
    for options in ARMS[arm][1]:
        step: Any = step_of(arm, options, TRAINING)
        assert step.batch == TRAINING["batch"]
        assert step.steps <= TRAINING["steps"] if arm == "tokens, stopped early" else step.steps == TRAINING["steps"]


def test_stories_are_apart_and_the_student_is_what_is_left_of_the_teacher(data: Path) -> None:
    bench = Bench(data, dict(TRAINING))
    parts = [set(bench.train), set(bench.dev), set(bench.held)]
    assert [len(part) for part in parts] == [80, 16, 30]
    assert len(set.union(*parts)) == 126
    assert len(anatomy.of(bench.student).blocks) == 2
    assert bench.score(bench.teacher, bench.held[:4]) < 5 < 100 < bench.score(bench.student, bench.held[:4])


def test_rows_that_are_there_are_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {"tokens": ("tokens", [{"lr": 1e-3}, {"lr": 1e-30}]), "gkd": ("distillation.gkd", [{"share": 0.0}])}
    monkeypatch.setattr(language_distillation, "ARMS", arms)
    bench = Bench(data, {"steps": 3, "batch": 2, "max_length": 16, "freeze_embeddings": False})
    content: dict[str, Any] = {"tuning": {}, "rows": {}}
    fill(bench, content, [1, 2], tmp_path / "out.json")
    assert sorted(content["rows"]) == ["gkd/1", "gkd/2", "tokens/1", "tokens/2"]
    assert content["rows"]["tokens/1"]["options"] == {"lr": 1e-3}, "the better one on development texts"
    assert json.loads((tmp_path / "out.json").read_text()) == content
    before = copy.deepcopy(content)
    monkeypatch.setattr(bench, "row", lambda *_: pytest.fail("made again"))
    fill(bench, content, [1, 2], tmp_path / "out.json")
    assert content == before
    found = summary(content, [1, 2])
    rows = content["rows"]
    assert found["tokens"]["less_tokens"] == [0, 0]
    assert found["gkd"]["less_tokens"][1] == pytest.approx(
        rows["gkd/2"]["perplexity"] - rows["tokens/2"]["perplexity"], abs=1e-4
    )


def test_arms_may_be_added_and_nothing_else_changed() -> None:
    old = {"training": {"steps": 4}, "dropped": [1], "arms": {"tokens": 1}}
    assert not differing(old, {**old, "arms": {"tokens": 1, "gkd": 2}})
    assert differing(old, {**old, "arms": {"tokens": 2}})
    assert differing(old, {**old, "arms": {}})
    assert differing(old, {**old, "training": {"steps": 5}})


def test_the_stored_results_are_of_these_settings_and_whole() -> None:
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert stored["settings"]["arms"] == json.loads(json.dumps(ARMS))
    assert stored["settings"]["training"] == TRAINING
    assert {name.rpartition("/")[0] for name in stored["rows"]} == set(ARMS)
    assert stored["summary"] == summary(stored, [1, 2, 3])
