from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from compresskit.calibrate.batches import tokenize
from compresskit.calibrate.outputs import outputs_of, pool
from compresskit.errors import CompressKitError, DataError, UsageError
from compresskit.tasks import Options, Score
from compresskit.tasks.run import facts_of, run_torch
from compresskit.tasks.sts import Similarity, read_pairs
from tests import models

ROWS = 'score\tsentence1\tsentence2\n5\tthe cat sat\tthe cat sat\n0\tgood film\tthe dog runs\n2.5\ta cat\ta "big" cat\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "pairs.tsv"
    path.write_text(text, encoding="utf-8")
    return path


def scored(model: torch.nn.Module, path: Path, **options: int) -> Score:
    task = Similarity()
    workload = task.prepare(path, models.tokenizer(), facts_of(model), Options(**options))  # type: ignore[arg-type]
    return task.score(workload, run_torch(model, workload))  # type: ignore[arg-type]


def test_pairs_are_read_with_their_scores(tmp_path: Path) -> None:
    scores, first, second = read_pairs(written(tmp_path, ROWS))
    assert scores == [5, 0, 2.5]
    assert first == ["the cat sat", "good film", "a cat"]
    assert second[2] == 'a "big" cat'
    assert read_pairs(written(tmp_path, ROWS), 2)[0] == [5, 0]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_the_score_is_the_rank_correlation_of_cosines(tmp_path: Path, batch_size: int) -> None:
    model, tokenizer = models.tiny("bert"), models.tokenizer()
    path = written(tmp_path, ROWS)
    found = scored(model, path, batch_size=batch_size)
    scores, first, second = read_pairs(path)
    cosines = []
    for left, right in zip(first, second, strict=True):
        vectors = []
        for text in (left, right):
            batch = tokenize([text], tokenizer, model)[0]
            vectors.append(pool(outputs_of(model, batch), batch["attention_mask"].bool())[0])
        cosines.append(float(torch.cosine_similarity(*vectors, dim=0)))
    assert (found.metric, found.rows, found.unit) == ("spearman", 3, "points")
    np.testing.assert_allclose(found.scores, cosines, atol=1e-5)
    assert found.value == pytest.approx(100 * spearmanr(scores, cosines).statistic)


def test_equal_sentences_are_run_once(tmp_path: Path) -> None:
    task = Similarity()
    workload = task.prepare(written(tmp_path, ROWS), models.tokenizer(), facts_of(models.tiny("bert")), Options())
    assert sum(len(batch["input_ids"]) for batch in workload.batches) == 5
    assert all(array.dtype == np.int64 for batch in workload.batches for array in batch.values())


def test_resampled_values_are_spearmans_with_ties() -> None:
    generator = np.random.default_rng(0)
    statistics = np.stack([generator.integers(0, 5, 40).astype(float), generator.normal(size=40)], axis=1)
    picks = generator.integers(0, 40, (6, 40))
    expected = [100 * spearmanr(*statistics[row].T).statistic for row in picks]
    np.testing.assert_allclose(Similarity().values(statistics, picks), expected)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("score\tsentence1\n1\ta\n2\tb\n", "CK-D004", "sentence2"),
        ("score\tsentence1\tsentence2\n1\ta\tb\nhigh\tc\td\n", "CK-D005", "'high'"),
        ("score\tsentence1\tsentence2\n1\ta\tb\nnan\tc\td\n", "CK-D005", "'nan'"),
        ("score\tsentence1\tsentence2\n1\ta\tb\n2\tc\n", "CK-D005", "null"),
        ("score\tsentence1\tsentence2\n1\ta\tb\n", "CK-D003", "1 pairs"),
        ("", "CK-D003", "0 pairs"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, text: str, code: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_pairs(written(tmp_path, text))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("row", "code"), [("3\ta cat\ta dog\n3\tgood\tbad\n", "CK-D003"), ("3\ta cat\t\n1\tgood\tbad\n", None)]
)
def test_rows_that_say_nothing_are_refused(tmp_path: Path, row: str, code: str | None) -> None:
    path = written(tmp_path, "score\tsentence1\tsentence2\n" + row)
    if code is None:  # an empty sentence still has its special tokens
        assert scored(models.tiny("bert"), path).rows == 2
        return
    with pytest.raises(DataError, match="nothing to rank") as caught:
        scored(models.tiny("bert"), path)
    assert caught.value.code == code


def test_a_model_without_embeddings_is_refused(tmp_path: Path) -> None:
    for family, task in (("bert", "lm"), ("bert", "classifier"), ("gpt2", "lm"), ("t5", "lm")):
        with pytest.raises(DataError) as caught:
            scored(models.tiny(family, task=task), written(tmp_path, ROWS))  # type: ignore[arg-type]
        assert caught.value.code == "CK-D021"


def test_unknown_pooling_is_refused(tmp_path: Path) -> None:
    from types import SimpleNamespace

    facts = facts_of(models.tiny("bert"), SimpleNamespace(pooling="weightedmean"))
    with pytest.raises(CompressKitError) as caught:
        Similarity().prepare(written(tmp_path, ROWS), models.tokenizer(), facts, Options())
    assert caught.value.code == "CK-M044"


def test_without_scipy_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy

    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    monkeypatch.delattr(scipy, "stats", raising=False)
    with pytest.raises(UsageError, match="scipy") as caught:
        scored(models.tiny("bert"), written(tmp_path, ROWS))
    assert "compresskit[tasks]" in caught.value.fix
