from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from compresskit.errors import DataError
from compresskit.tasks import Options, Score
from compresskit.tasks.language_modelling import LanguageModelling, read_running_text, windows
from compresskit.tasks.run import facts_of, run_torch
from tests import models

TEXTS = ["the cat sat on a mat and the dog runs in the park", "a good film is not a bad book but we like it"]


def written(folder: Path, texts: list[str], name: str = "texts.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def scored(model: PreTrainedModel, tokenizer: object, path: Path, **options: int | None) -> Score:
    task = LanguageModelling()
    workload = task.prepare(path, tokenizer, facts_of(model), Options(**options))  # type: ignore[arg-type]
    return task.score(workload, run_torch(model, workload))


def by_plain_loop(model: PreTrainedModel, tokenizer: object, texts: list[str], longest: int, stride: int) -> float:
    """Nats a token, as the documentation of transformers computes perplexity: one window after the other, unpadded."""
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])  # type: ignore[operator]
        previous = 0
        for begin in range(0, ids.shape[1], stride):
            end = min(begin + longest, ids.shape[1])
            window = ids[:, begin:end]
            labels = window.clone()
            labels[:, : -(end - previous)] = -100
            with torch.no_grad():
                logits = model(window).logits[0, :-1].double()
            wanted = labels[0, 1:]
            kept = wanted != -100
            if kept.any():
                total += float(torch.nn.functional.cross_entropy(logits[kept], wanted[kept], reduction="sum"))
                count += int(kept.sum())
            previous = end
            if end == ids.shape[1]:
                break
    return total / count


@pytest.mark.parametrize(
    ("length", "longest", "stride"), [(1, 8, 4), (2, 8, 4), (9, 8, 4), (30, 8, 3), (31, 8, 7), (8, 8, 1)]
)
def test_every_token_but_the_first_is_predicted_once(length: int, longest: int, stride: int) -> None:
    predicted = [place for start, end, first in windows(length, longest, stride) for place in range(first, end)]
    assert predicted == list(range(1, length))
    for start, end, first in windows(length, longest, stride):
        assert start < first < end <= start + longest


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(("longest", "stride"), [(None, None), (6, 3), (5, 4)])
def test_it_equals_a_plain_loop(tmp_path: Path, family: str, longest: int | None, stride: int | None) -> None:
    model, tokenizer = models.tiny(family, task="lm"), models.tokenizer()
    score = scored(model, tokenizer, written(tmp_path, TEXTS), max_length=longest, stride=stride)
    expected = by_plain_loop(model, tokenizer, TEXTS, longest or 128, stride or 64)
    assert score.details["nats_per_token"] == pytest.approx(expected, abs=1e-5)
    assert score.value == pytest.approx(math.exp(expected), rel=1e-5)
    assert score.higher_is_better is False
    size = sum(len(text.encode()) for text in TEXTS)
    bits = expected * score.details["tokens_count"] / math.log(2) / size
    assert score.details["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_the_size_of_batches_changes_nothing(tmp_path: Path) -> None:
    model, path = models.tiny("gpt2", task="lm"), written(tmp_path, TEXTS)
    found = [scored(model, models.tokenizer(), path, max_length=6, stride=2, batch_size=size) for size in (1, 3, 64)]
    assert found[0].value == pytest.approx(found[1].value, rel=1e-6)
    assert found[0].value == pytest.approx(found[2].value, rel=1e-6)
    np.testing.assert_allclose(found[0].statistics, found[2].statistics, rtol=1e-5)
    assert found[0].logits is not None
    assert len(found[0].logits) == found[0].details["tokens_count"]


def test_resampled_windows_have_their_own_perplexity(tmp_path: Path) -> None:
    score = scored(models.tiny("gpt2", task="lm"), models.tokenizer(), written(tmp_path, TEXTS), max_length=6, stride=3)
    whole = np.arange(score.rows)[None]
    assert LanguageModelling().values(score.statistics, whole)[0] == pytest.approx(score.value)
    first = LanguageModelling().values(score.statistics, np.zeros((1, 4), dtype=int))[0]
    assert first == pytest.approx(math.exp(score.scores[0]))


def test_lines_of_a_text_file_are_one_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one two\n\nthree\n")
    assert read_running_text(path) == ["one two\n\nthree\n"]
    assert read_running_text(path, 1) == ["one two\n"]
    assert read_running_text(written(tmp_path, TEXTS)) == TEXTS


@pytest.mark.parametrize(
    ("options", "texts", "code"),
    [
        ({"max_length": 6, "stride": 6}, TEXTS, "CK-D055"),
        ({"max_length": 2, "stride": 9}, TEXTS, "CK-D055"),
        ({}, [], "CK-D003"),
    ],
)
def test_what_cannot_be_predicted_is_refused(
    tmp_path: Path, options: dict[str, int], texts: list[str], code: str
) -> None:
    with pytest.raises(DataError) as caught:
        scored(models.tiny("gpt2", task="lm"), models.tokenizer(), written(tmp_path, texts), **options)
    assert caught.value.code == code


def test_other_models_and_foreign_tokenizers_are_refused(tmp_path: Path) -> None:
    for family, task in (("bert", "base"), ("bert", "lm"), ("t5", "lm"), ("gpt2", "base")):
        with pytest.raises(DataError) as caught:
            scored(models.tiny(family, task=task), models.tokenizer(), written(tmp_path, TEXTS))  # type: ignore[arg-type]
        assert caught.value.code == "CK-D021"
    with pytest.raises(DataError) as caught:
        scored(models.tiny("gpt2", task="lm"), None, written(tmp_path, TEXTS))
    assert caught.value.code == "CK-D008"


def test_a_trained_model_on_its_own_text_equals_a_plain_loop(shared_data: Path, tmp_path: Path) -> None:
    """The page of stories260K gives 1.325 nats a token on all of these stories."""
    folder = shared_data / "models" / "stories260K"
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder / "hf").eval(),
        AutoTokenizer.from_pretrained(folder / "hf"),
    )
    rows = (folder / "self_samples.jsonl").read_text().splitlines()
    texts = [json.loads(row)["text"] for row in rows]
    whole = scored(model, tokenizer, folder / "self_samples.jsonl")
    assert whole.details["nats_per_token"] == pytest.approx(1.325, abs=2e-3)
    part = scored(model, tokenizer, written(tmp_path, texts[:20]), max_length=128, stride=48)
    assert part.details["nats_per_token"] == pytest.approx(
        by_plain_loop(model, tokenizer, texts[:20], 128, 48), abs=1e-5
    )
    assert part.value == pytest.approx(math.exp(by_plain_loop(model, tokenizer, texts[:20], 128, 48)), abs=1e-4)
