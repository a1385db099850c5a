"""MiDTD without bags of rows: words of tagged sentences, next words of texts, near duplicates; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForTokenClassification

from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.errors import DataError
from compresskit.methods.distillation._positions import tagged_rows, text_rows
from compresskit.methods.distillation.midtd import MiDTD
from compresskit.numerics.fusion import fuse_targets
from compresskit.recipe import TrainingData
from tests import models
from tests.methods.distillation.training import TEXTS

TAGS = ("O", "B-ANIMAL", "I-ANIMAL")
SENTENCES = [
    {"tokens": ["the", "big", "dog", "runs"], "tags": ["O", "B-ANIMAL", "I-ANIMAL", "O"]},
    {"tokens": ["a", "cat", "sat"], "tags": ["O", "B-ANIMAL", "O"]},
    {"tokens": ["we", "like", "the", "big", "dog"], "tags": ["O", "O", "O", "B-ANIMAL", "I-ANIMAL"]},
    {"tokens": ["a", "good", "book"], "tags": ["O", "O", "O"]},
]


def table(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def tagger(seed: int) -> Any:
    config = models.config("bert")
    config.id2label, config.label2id = dict(enumerate(TAGS)), {name: number for number, name in enumerate(TAGS)}
    torch.manual_seed(seed)
    return BertForTokenClassification(config).eval()


def apply(method: MiDTD, model: Any, teacher: Any, train: str, tmp_path: Path) -> dict[str, Any]:
    given = Context(
        tokenizer=models.tokenizer(),
        teacher=lambda: teacher,
        data=TrainingData(train=train, dev=train),
        work=tmp_path / "work",
    )
    method.apply(model, resolve(model, method).sites, given)
    (note,) = given.details.values()
    return note


def test_words_of_a_mention_are_a_bag_and_others_stand_alone(tmp_path: Path) -> None:
    rows = tagged_rows(table(tmp_path / "a.jsonl", SENTENCES), tagger(0), models.tokenizer(), 32)
    assert rows.data.positions is not None
    assert rows.data.labels.tolist() == [0, 1, 2, 0, 0, 1, 0, 0, 0, 0, 1, 2, 0, 0, 0]
    assert rows.groups[1] == rows.groups[10] != rows.groups[2] == rows.groups[11]
    assert len(set(rows.groups)) == 13
    logits = torch.randn(15, 3)
    fused = fuse_targets(logits, rows.groups, 1.0)
    alone = [number for number in range(15) if number not in (1, 2, 10, 11)]
    assert torch.equal(fused[alone], logits[alone])
    torch.testing.assert_close(fused[1], (logits[1] + logits[10]) / 2)
    # A cut sentence keeps the bags of the words that are left.
    cut = tagged_rows(str(tmp_path / "a.jsonl"), tagger(0), models.tokenizer(), 5)
    assert cut.data.labels.tolist() == [0, 1, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_a_tagger_learns(tmp_path: Path) -> None:
    train = table(tmp_path / "train.jsonl", SENTENCES * 4)
    teacher, student = tagger(1), tagger(2)
    quick = {"epochs": 14, "batch": 4, "lr": 1e-3}
    taught = apply(MiDTD(alpha=0.0, **quick), teacher, tagger(3), train, tmp_path)
    assert max(taught["generations"][0]["scores"]) > 0.9
    brief = MiDTD(key="group+label", generations=2, **quick | {"epochs": 2})
    note = apply(brief, student, teacher, train, tmp_path)
    assert note["instances"] == 60
    assert len(note["generations"]) == 2
    losses = note["generations"][0]["losses"]
    assert losses[-1] < losses[0]
    assert list((tmp_path / "work" / "midtd").glob("positions-*.npy"))


def test_a_language_model_learns_each_next_word(tmp_path: Path) -> None:
    train = table(tmp_path / "train.jsonl", [{"text": text} for text in TEXTS])
    student, teacher = models.tiny("gpt2", 2, "lm"), models.tiny("gpt2", 1, "lm")
    quick = {"epochs": 4, "batch": 8, "lr": 5e-3}
    apply(MiDTD(alpha=0.0, **quick), teacher, models.tiny("gpt2", 3, "lm"), train, tmp_path)
    note = apply(MiDTD(top_k=5, **quick), student, teacher, train, tmp_path)
    scores = note["generations"][0]["scores"]
    assert scores[-1] > scores[0]
    rows = text_rows(train, TrainingData(train=train), student, models.tokenizer(), 32, print)
    assert len(rows.data.labels) == sum(len(row["input_ids"]) - 1 for row in rows.data.rows)
    words = next((tmp_path / "work" / "midtd").glob("words-*-5.npy"))
    assert np.load(words).shape == (len(rows.data.labels), 5)


def test_all_the_soft_loss_of_a_teacher_as_student_is_nothing(tmp_path: Path) -> None:
    """With T = 1 on both sides and no labels, an equal student has a loss of 0, with k words as well."""
    train = table(tmp_path / "train.jsonl", [{"text": text} for text in TEXTS[:4]])
    teacher = models.tiny("gpt2", 1, "lm", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    student = models.tiny("gpt2", 1, "lm", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    method = MiDTD(policy="fixed", alpha=1.0, top_k=6, epochs=1, batch=4, lr=1e-6)
    note = apply(method, student, teacher, train, tmp_path)
    assert note["generations"][0]["losses"][0] == pytest.approx(0, abs=1e-5)


def test_refusals(tmp_path: Path) -> None:
    texts = table(tmp_path / "texts.jsonl", [{"text": "the cat", "user": "a"}])
    settings = TrainingData(train=texts, group="user")
    with pytest.raises(DataError) as caught:
        text_rows(texts, settings, models.tiny("gpt2", 0, "lm"), models.tokenizer(), 16, print)
    assert caught.value.code == "CK-D095"
    unknown = table(tmp_path / "tags.jsonl", [{"tokens": ["dog"], "tags": ["B-CITY"]}])
    with pytest.raises(DataError) as caught:
        tagged_rows(unknown, tagger(0), models.tokenizer(), 16)
    assert caught.value.code == "CK-D051"
    other = models.tiny("gpt2", 0, "lm")
    other.resize_token_embeddings(models.VOCABULARY + 3)
    with pytest.raises(DataError) as caught:
        apply(MiDTD(), models.tiny("gpt2", 0, "lm"), other, texts, tmp_path)
    assert caught.value.code == "CK-D073"
