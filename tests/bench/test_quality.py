from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, entropy, spearmanr

from compresskit.bench import quality
from compresskit.errors import DataError, RecipeError
from compresskit.tasks import Workload
from compresskit.tasks.run import run_torch
from tests import models

LABELS = ["LABEL_0", "LABEL_1", "LABEL_2"]
WORDS = ["cat", "dog", "film", "book", "park", "mat"]


def classification(folder: Path, rows: int = 60) -> Workload:
    path = folder / "rows.tsv"
    generator = np.random.default_rng(0)
    lines = [f"the {WORDS[generator.integers(6)]} {WORDS[generator.integers(6)]}\t{LABELS[i % 3]}" for i in range(rows)]
    path.write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    config = models.tiny("bert", task="classifier").config.to_dict() | {
        "architectures": ["BertForSequenceClassification"]
    }
    return quality.prepare("classification", path, models.tokenizer(), config=config)


def answers(workload: Workload, predicted: np.ndarray, sharpness: float = 2.0) -> list[dict[str, np.ndarray]]:
    """Logits by which example i is given the class ``predicted[i]``."""
    logits = np.random.default_rng(1).normal(size=(workload.rows, 3)).astype(np.float32) * 0.1
    logits[np.arange(workload.rows), predicted] += sharpness
    found, row = [], 0
    for batch in workload.batches:
        size = len(batch["input_ids"])
        found.append({"logits": logits[workload.order[row : row + size]]})
        row += size
    return found


def test_two_classifiers_are_compared_on_the_same_examples(tmp_path: Path) -> None:
    workload = classification(tmp_path)
    gold = workload.reference["gold"]
    first, second = gold.copy(), gold.copy()
    first[:6] = (first[:6] + 1) % 3
    second[4:16] = (second[4:16] + 1) % 3
    base, other = (quality.score(workload, answers(workload, each)) for each in (first, second))
    assert (base.value, other.value) == (90.0, 80.0)
    found = quality.against(base, other)
    assert found["difference"] == -10
    assert (found["lost"], found["won"]) == (10, 4)
    assert found["flips"] == pytest.approx(100 * 14 / 60)
    assert found["p_mcnemar"] == pytest.approx(binomtest(4, 14).pvalue)
    assert found["top1_agreement"] == pytest.approx(100 * 46 / 60)
    low, high = found["ci"]
    # The difference of paired answers has the standard error sqrt((10 + 4) / 60 - 0.1**2) / sqrt(60).
    error = 100 * np.sqrt(14 / 60 - 0.01) / np.sqrt(60)
    assert low == pytest.approx(-10 - 1.96 * error, abs=100 / 60)
    assert high == pytest.approx(-10 + 1.96 * error, abs=100 / 60)
    nats = [entropy(_softmax(p), _softmax(q)) for p, q in zip(base.logits, other.logits, strict=True)]  # type: ignore[arg-type]
    assert found["kl_mean"] == pytest.approx(np.mean(nats), rel=1e-6)
    assert found["kl_p95"] == pytest.approx(np.quantile(nats, 0.95), rel=1e-6)
    recalls = {
        label: 100 * float((first == gold)[gold == label].mean() - (second == gold)[gold == label].mean())
        for label in range(3)
    }
    worst = max(recalls, key=lambda label: recalls[label])
    assert found["worst_class"] == {"name": LABELS[worst], "drop": pytest.approx(recalls[worst]), "rows": 20}


def _softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(row.astype(np.float64) - row.max())
    return powers / powers.sum()


def test_a_model_against_itself_differs_in_nothing(tmp_path: Path) -> None:
    workload = classification(tmp_path)
    found = quality.score(workload, answers(workload, workload.reference["gold"]))
    same = quality.against(found, found)
    assert same["equal"] is True
    assert same["difference"] == 0
    assert same["ci"] == [0, 0]
    assert (same["flips"], same["kl_mean"], same["p_mcnemar"], same["top1_agreement"]) == (0, 0, 1, 100)


def test_scores_of_other_examples_are_not_compared(tmp_path: Path) -> None:
    long, short = classification(tmp_path), classification(tmp_path, 30)
    found = [quality.score(work, answers(work, work.reference["gold"])) for work in (long, short)]
    with pytest.raises(DataError) as caught:
        quality.against(*found)
    assert caught.value.code == "CK-D053"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda outputs: outputs[:-1],
        lambda outputs: [{"noise": next(iter(each.values()))} for each in outputs],
        lambda outputs: [{"logits": each["logits"][:-1]} for each in outputs],
        lambda outputs: [{"logits": each["logits"] * np.nan} for each in outputs],
    ],
)
def test_outputs_that_do_not_fit_are_refused(tmp_path: Path, spoil: Any) -> None:
    workload = classification(tmp_path)
    with pytest.raises(DataError) as caught:
        quality.score(workload, spoil(answers(workload, workload.reference["gold"])))
    assert caught.value.code == "CK-D053"


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        quality.prepare("poetry", tmp_path / "a.tsv", None)
    assert caught.value.code == "CK-R033"


def similarity(folder: Path) -> tuple[Workload, list[dict[str, np.ndarray]]]:
    path = folder / "pairs.tsv"
    generator = np.random.default_rng(0)
    lines = [
        f"{generator.integers(6)}\tthe {WORDS[i % 6]} {WORDS[i // 6 % 6]}\ta {WORDS[i // 3 % 6]} {WORDS[i % 5]}"
        for i in range(36)
    ]
    path.write_text("score\tsentence1\tsentence2\n" + "\n".join(lines) + "\n")
    checkpoint = models.write_checkpoint(models.tiny("bert"), folder / "source")
    workload = quality.prepare("sts", path, models.tokenizer(), folder=checkpoint)
    return workload, run_torch(models.tiny("bert"), workload)


def test_rank_correlation_is_resampled_as_it_is_computed(tmp_path: Path) -> None:
    workload, outputs = similarity(tmp_path)
    base = quality.score(workload, outputs)
    shifted = [{"embedding": each["embedding"] + np.float32(0.3)} for each in outputs]
    other = quality.score(workload, shifted)
    found = quality.against(base, other, resamples=200)
    picks = quality.draw(36, 200)
    gold = workload.reference["gold"]
    draws = [
        100 * (spearmanr(gold[row], other.scores[row]).statistic - spearmanr(gold[row], base.scores[row]).statistic)
        for row in picks
    ]
    assert found["ci"] == pytest.approx(np.quantile(draws, [0.025, 0.975]).tolist())
    assert found["difference"] == pytest.approx(other.value - base.value)
    assert 0 < found["cosine_min"] <= found["cosine_mean"] < 1
    assert "flips" not in found


def test_hidden_states_and_ready_vectors_score_alike(tmp_path: Path) -> None:
    """An ONNX file may pool in its graph; a checkpoint gives hidden states, which are pooled here."""
    import torch

    workload, pooled = similarity(tmp_path)
    model = models.tiny("bert")
    hidden = []
    for batch in workload.batches:
        inputs = {name: torch.from_numpy(array) for name, array in batch.items()}
        with torch.no_grad():
            hidden.append({"last_hidden_state": model(**inputs).last_hidden_state.numpy()})
    ready = [{"sentence_embedding": each["embedding"]} for each in pooled]
    values = [quality.score(workload, outputs).value for outputs in (pooled, hidden, ready)]
    assert values == pytest.approx([values[0]] * 3, abs=1e-4)


def test_language_models_are_compared_by_perplexity_and_divergence(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"the {word} and the dog sat on a mat"}) + "\n" for word in WORDS))
    first = models.tiny("gpt2", task="lm")
    config = first.config.to_dict() | {"architectures": ["GPT2LMHeadModel"]}
    workload = quality.prepare("language_modelling", path, models.tokenizer(), config=config, max_length=6)
    second = models.tiny("gpt2", task="lm")
    second.transformer.h[0].mlp.c_fc.weight.data *= 1.5
    base, other = (quality.score(workload, run_torch(model, workload)) for model in (first, second))
    found = quality.against(base, other)
    assert found["higher_is_better"] is False
    assert found["unit"] == ""
    assert found["difference"] == pytest.approx(other.value - base.value)
    assert found["kl_mean"] > 0
    assert 0 < found["top1_agreement"] < 100
    assert found["ci"][0] < found["difference"] < found["ci"][1]


def test_a_record_holds_what_its_figures_are_computed_from(tmp_path: Path) -> None:
    workload = classification(tmp_path)
    predicted = workload.reference["gold"].copy()
    predicted[:9] = (predicted[:9] + 1) % 3
    found = quality.score(workload, answers(workload, predicted))
    record = quality.to_record(found, quality.against(found, found))
    assert (record.value, record.n, record.unit, record.status) == (85.0, 60, "points", "measured")
    assert record.ci is not None
    assert record.ci[0] < 85 < record.ci[1]
    again = type(record).model_validate(json.loads(record.model_dump_json()))
    assert quality.recomputed(again) == (85.0, record.ci)
    workload_sts, outputs = similarity(tmp_path)
    kept = quality.to_record(quality.score(workload_sts, outputs))
    value, ci = quality.recomputed(type(kept).model_validate(json.loads(kept.model_dump_json())))
    assert value == pytest.approx(kept.value)
    assert ci == pytest.approx(kept.ci)


def test_a_record_without_its_sums_says_so(tmp_path: Path) -> None:
    workload = classification(tmp_path)
    record = quality.to_record(quality.score(workload, answers(workload, workload.reference["gold"])))
    with pytest.raises(DataError):
        quality.recomputed(record.model_copy(update={"details": {}}))


def test_torch_and_onnxruntime_are_scored_by_the_same_code(bert: Path, gpt2: Path, tmp_path: Path) -> None:
    from compresskit.bench.engines import engine
    from compresskit.bench.engines.base import Settings

    pairs, texts = tmp_path / "pairs.tsv", tmp_path / "texts.jsonl"
    pairs.write_text("score\tsentence1\tsentence2\n5\tthe cat\ta cat\n1\tgood film\tthe dog\n3\tbad book\ta book\n")
    texts.write_text(json.dumps({"text": "the cat sat on a mat and the dog runs in the park"}) + "\n")
    for task, data, folder in (("sts", pairs, bert), ("language_modelling", texts, gpt2)):
        workload = quality.prepare(task, data, models.tokenizer(), folder=folder)
        found = []
        for name, path in (("torch", folder), ("onnxruntime", folder / "model.onnx")):
            running = engine(name)
            running.load(path, Settings(threads=1))
            found.append(quality.score(workload, [running.run(batch) for batch in workload.batches]))
        assert found[0].value == pytest.approx(found[1].value, rel=1e-4)
        np.testing.assert_allclose(found[0].scores, found[1].scores, atol=1e-4)
        compared = quality.against(*found)
        assert compared.get("cosine_min", 1) > 0.99999
        assert compared.get("kl_mean", 0) < 1e-6
