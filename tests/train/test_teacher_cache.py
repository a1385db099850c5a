from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compresskit.calibrate.batches import collate, encode
from compresskit.calibrate.outputs import result_mask
from compresskit.errors import DataError
from compresskit.train.objective import EmbeddingObjective, Objective, ResponseObjective
from compresskit.train.teacher_cache import CachedOutputs, LiveOutputs, cache_key, teacher_outputs
from tests import models

TEXTS = ["the cat sat on the mat", "a big dog runs", "good film", "we like it not but the book of the dog is bad"] * 3


def cases() -> list[tuple[str, models.Task, Objective]]:
    return [
        ("bert", "base", EmbeddingObjective()),
        ("t5encoder", "base", EmbeddingObjective(hidden=0)),
        ("gpt2", "lm", ResponseObjective()),
        ("bert", "lm", ResponseObjective()),
        ("t5", "lm", ResponseObjective()),
        ("roberta", "classifier", ResponseObjective()),
    ]


@pytest.mark.parametrize(("name", "task", "objective"), cases())
def test_cached_outputs_equal_live_ones(name: str, task: models.Task, objective: Objective, tmp_path: Path) -> None:
    teacher = models.tiny(name, task=task)
    rows = encode(TEXTS, models.tokenizer(), teacher)
    objective.prepare(teacher, teacher, collate(rows[:1]))
    cached = teacher_outputs(teacher, objective, rows, tmp_path)
    assert isinstance(cached, CachedOutputs)
    numbers = [5, 0, 7]
    batch = collate([rows[number] for number in numbers])
    live = LiveOutputs(teacher, objective).of(numbers, batch)
    found = cached.of(numbers, batch)
    assert found.keys() == live.keys()
    mask = result_mask(teacher, batch)
    for key, value in live.items():
        left, right = (found[key][mask], value[mask]) if value.dim() > 2 else (found[key], value)
        torch.testing.assert_close(left, right, rtol=2e-3, atol=2e-3)
    student = models.tiny(name, seed=1, task=task)
    losses = [objective.loss(student, batch, targets).item() for targets in (found, live)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_language_models_cache_holds_states_not_logits(tmp_path: Path) -> None:
    teacher = models.tiny("gpt2", task="lm")
    rows = encode(TEXTS, models.tokenizer(), teacher)
    objective = ResponseObjective()
    objective.prepare(teacher, teacher, collate(rows[:1]))
    cached = teacher_outputs(teacher, objective, rows, tmp_path)
    assert isinstance(cached, CachedOutputs)
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert {name: array.shape for name, array in cached.arrays.items()} == {"state": (tokens, 64)}
    assert cached.arrays["state"].dtype == "float16"


def test_a_finished_cache_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, objective = models.tiny("bert"), EmbeddingObjective()
    rows = encode(TEXTS, models.tokenizer(), teacher)
    first = teacher_outputs(teacher, objective, rows, tmp_path).of([1], collate(rows[1:2]))
    monkeypatch.setattr("compresskit.train.teacher_cache._fill", lambda *_: pytest.fail("filled again"))
    again = teacher_outputs(teacher, objective, rows, tmp_path).of([1], collate(rows[1:2]))
    assert torch.equal(first["embedding"], again["embedding"])


def test_an_unfinished_cache_is_made_anew(tmp_path: Path) -> None:
    teacher, objective = models.tiny("bert"), EmbeddingObjective()
    rows = encode(TEXTS, models.tokenizer(), teacher)
    place = tmp_path / f"teacher-{cache_key(teacher, objective, rows)}"
    place.mkdir()
    (place / "embedding.npy").write_bytes(b"cut short")
    found = teacher_outputs(teacher, objective, rows, tmp_path).of([0], collate(rows[:1]))
    assert found["embedding"].shape == (1, 64)


def test_the_key_knows_teacher_texts_and_objective() -> None:
    teacher, rows = models.tiny("bert"), [{"input_ids": [1, 2], "attention_mask": [1, 1]}]
    keys = {
        cache_key(teacher, EmbeddingObjective(), rows),
        cache_key(models.tiny("bert", seed=1), EmbeddingObjective(), rows),
        cache_key(teacher, EmbeddingObjective(hidden=0), rows),
        cache_key(teacher, EmbeddingObjective(), [*rows, *rows]),
    }
    assert len(keys) == 4
    assert cache_key(models.tiny("bert"), EmbeddingObjective(hidden=3), rows) in keys


def test_beyond_the_limit_the_teacher_runs_live(tmp_path: Path) -> None:
    teacher, objective = models.tiny("bert"), EmbeddingObjective()
    rows = encode(TEXTS, models.tokenizer(), teacher)
    assert isinstance(teacher_outputs(teacher, objective, rows, tmp_path, limit=1000), LiveOutputs)
    assert list(tmp_path.iterdir()) == []


def test_large_values_are_kept_in_float32(tmp_path: Path) -> None:
    teacher, objective = models.tiny("bert"), EmbeddingObjective()
    with torch.no_grad():
        teacher.encoder.layer[2].output.LayerNorm.bias.fill_(1e5)
    rows = encode(TEXTS, models.tokenizer(), teacher)
    cached = teacher_outputs(teacher, objective, rows, tmp_path)
    assert isinstance(cached, CachedOutputs)
    assert cached.arrays["hidden"].dtype == "float32"


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    teacher, objective = models.tiny("bert"), EmbeddingObjective()
    with torch.no_grad():
        teacher.encoder.layer[2].output.LayerNorm.bias.fill_(torch.nan)
    rows = encode(TEXTS, models.tokenizer(), teacher)
    with pytest.raises(DataError) as caught:
        teacher_outputs(teacher, objective, rows, tmp_path)
    assert caught.value.code == "CK-D024"
