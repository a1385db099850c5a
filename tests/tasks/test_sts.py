from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from compresskit.errors import DataError, UsageError
from compresskit.tasks.sts import embed, read_pairs, similarity
from tests import models

ROWS = 'score\tsentence1\tsentence2\n5\tthe cat sat\tthe cat sat\n0\tgood film\tthe dog runs\n2.5\ta cat\ta "big" cat\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "pairs.tsv"
    path.write_text(text, encoding="utf-8")
    return path


def test_pairs_are_read_with_their_scores(tmp_path: Path) -> None:
    scores, first, second = read_pairs(written(tmp_path, ROWS))
    assert scores == [5, 0, 2.5]
    assert first == ["the cat sat", "good film", "a cat"]
    assert second[2] == 'a "big" cat'
    assert read_pairs(written(tmp_path, ROWS), 2)[0] == [5, 0]


def test_the_score_is_the_rank_correlation_of_cosines(tmp_path: Path) -> None:
    from scipy.stats import spearmanr

    model, tokenizer = models.tiny("bert"), models.tokenizer()
    path = written(tmp_path, ROWS)
    found = similarity(model, tokenizer, path)
    scores, first, second = read_pairs(path)
    vectors = [embed(model, tokenizer, texts) for texts in (first, second)]
    cosines = torch.nn.functional.cosine_similarity(*vectors)
    assert found.metric == "spearman"
    assert found.rows == 3
    assert found.value == pytest.approx(100 * spearmanr(scores, cosines.numpy()).statistic)


def test_embeddings_keep_the_order_of_the_texts() -> None:
    model, tokenizer = models.tiny("bert"), models.tokenizer()
    texts = ["the cat", "a big dog runs fast", "the cat", "film"]
    together = embed(model, tokenizer, texts, batch_size=2)
    for text, vector in zip(texts, together, strict=True):
        torch.testing.assert_close(embed(model, tokenizer, [text])[0], vector, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("score\tsentence1\n1\ta\n2\tb\n", "CK-D004", "sentence2"),
        ("score\tsentence1\tsentence2\n1\ta\tb\nhigh\tc\td\n", "CK-D005", "'high'"),
        ("score\tsentence1\tsentence2\n1\ta\tb\nnan\tc\td\n", "CK-D005", "'nan'"),
        ("score\tsentence1\tsentence2\n1\ta\tb\n2\tc\n", "CK-D005", "null"),
        ("score\tsentence1\tsentence2\n1\ta\tb\n", "CK-D003", "1 pairs"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, text: str, code: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_pairs(written(tmp_path, text))
    assert caught.value.code == code


def test_pairs_that_all_score_alike_are_refused(tmp_path: Path) -> None:
    same = "score\tsentence1\tsentence2\n3\ta cat\ta dog\n3\tgood\tbad\n"
    with pytest.raises(DataError, match="nothing to rank"):
        similarity(models.tiny("bert"), models.tokenizer(), written(tmp_path, same))


def test_a_model_without_embeddings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        similarity(models.tiny("bert", task="lm"), models.tokenizer(), written(tmp_path, ROWS))
    assert caught.value.code == "CK-D021"


def test_without_scipy_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(UsageError, match="scipy") as caught:
        similarity(models.tiny("bert"), models.tokenizer(), written(tmp_path, ROWS))
    assert "compresskit[tasks]" in caught.value.fix


@pytest.mark.slow
def test_minilm_scores_as_published(minilm_path: Path, shared_data: Path) -> None:
    model = AutoModel.from_pretrained(minilm_path).eval()
    score = similarity(model, AutoTokenizer.from_pretrained(minilm_path), shared_data / "stsb" / "test.tsv")
    assert score.rows == 1379
    assert score.value == pytest.approx(82.03, abs=0.01)
    assert score.details["pearson"] == pytest.approx(82.74, abs=0.01)
