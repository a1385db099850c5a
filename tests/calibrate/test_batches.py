from __future__ import annotations

import pytest
import torch

from compresskit.calibrate.batches import (
    check_batches,
    collate,
    encode,
    longest_input,
    random_batches,
    tokenize,
)
from compresskit.calibrate.forward import run
from compresskit.errors import DataError
from tests import models

TEXTS = ["the cat sat on the mat", "a big dog runs", "good film", "we like it not but the book of the dog is bad"]


def test_batches_are_padded_on_the_right_and_sorted(family: str) -> None:
    model = models.tiny(family)
    batches = tokenize(TEXTS, models.tokenizer(), model, batch_size=2)
    assert [batch["input_ids"].shape[0] for batch in batches] == [2, 2]
    lengths = [int(row.sum()) for batch in batches for row in batch["attention_mask"]]
    assert lengths == sorted(lengths, reverse=True)
    for batch in batches:
        mask = batch["attention_mask"]
        assert bool((mask[:, :-1] >= mask[:, 1:]).all())
        assert bool((batch["input_ids"][mask == 0] == models.PAD).all())
        assert run(model, batch) is not None


def test_long_texts_come_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    long = ["the cat sat on the mat " * 4] * 3 + TEXTS
    rows = tokenize(long, models.tokenizer(), models.tiny("bert"))
    assert len(rows) == 1
    longest = rows[0]["input_ids"].shape[1]
    monkeypatch.setattr("compresskit.calibrate.batches._BATCH_TOKENS", 3 * longest + 1)
    sizes = [batch["input_ids"].shape[0] for batch in tokenize(long, models.tokenizer(), models.tiny("bert"))]
    assert sizes == [3, 3, 1]
    monkeypatch.setattr("compresskit.calibrate.batches._BATCH_TOKENS", longest - 1)
    assert len(tokenize(long, models.tokenizer(), models.tiny("bert"))) == len(long)


def test_order_is_kept_when_asked() -> None:
    tokenizer, model = models.tokenizer(), models.tiny("bert")
    batch = tokenize(TEXTS, tokenizer, model, sort_by_length=False)[0]
    for text, ids, mask in zip(TEXTS, batch["input_ids"], batch["attention_mask"], strict=True):
        assert ids[mask.bool()].tolist() == tokenizer(text)["input_ids"]


def test_only_arguments_that_the_model_takes() -> None:
    tokenizer = models.tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert "token_type_ids" in tokenize(TEXTS, tokenizer, models.tiny("bert"))[0]
    assert "token_type_ids" not in tokenize(TEXTS, tokenizer, models.tiny("distilbert"))[0]


def test_an_encoder_decoder_reads_one_half_and_continues_with_the_other() -> None:
    model = models.tiny("t5", task="lm")
    tokenizer = models.tokenizer()
    row = encode(["the cat sat on the mat"], tokenizer, model)[0]
    plain = tokenizer("the cat sat on the mat", add_special_tokens=False)["input_ids"]
    assert row["input_ids"] == [models.FIRST, *plain[:3], models.LAST]
    assert row["decoder_input_ids"] == [model.config.decoder_start_token_id, *plain[3:]]
    assert len(row["decoder_attention_mask"]) == len(row["decoder_input_ids"])


def test_texts_are_cut_to_the_models_positions() -> None:
    notes: list[str] = []
    model = models.tiny("gpt2")
    batch = tokenize(["cat " * 500], models.tokenizer(10**6), model, max_length=400, warn=notes.append)[0]
    assert batch["input_ids"].shape == (1, 128)
    assert "128" in notes[0]


def test_roberta_has_fewer_positions_than_its_table_has_rows() -> None:
    model = models.tiny("roberta")
    limit = longest_input(model)
    assert limit == model.config.max_position_embeddings - model.config.pad_token_id - 1
    ids = torch.full((1, limit), 7)
    assert run(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}) is not None


def test_t5_takes_any_length() -> None:
    assert longest_input(models.tiny("t5encoder")) >= 10**6


def test_no_tokenizer_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        tokenize(TEXTS, None, models.tiny("bert"))
    assert caught.value.code == "CK-D008"


def test_no_text_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        tokenize([], models.tokenizer(), models.tiny("bert"))
    assert caught.value.code == "CK-D003"


def test_texts_without_a_token_are_left_out_and_all_of_them_refused() -> None:
    tokenizer, model = models.tokenizer(), models.tiny("gpt2")
    tokenizer._tokenizer.post_processor = None
    notes: list[str] = []
    assert tokenize(["", "cat"], tokenizer, model, warn=notes.append)[0]["input_ids"].shape[0] == 1
    assert "1 of 2" in notes[0]
    with pytest.raises(DataError) as caught:
        tokenize(["", " "], tokenizer, model)
    assert caught.value.code == "CK-D007"


def test_a_foreign_token_is_refused_with_its_row() -> None:
    model = models.tiny("bert")
    model.set_input_embeddings(torch.nn.Embedding(20, 64))
    with pytest.raises(DataError) as caught:
        tokenize(["!", "the dog"], models.tokenizer(), model)
    assert caught.value.code == "CK-D006"
    assert "text 1" in caught.value.where


def test_random_batches_run_and_repeat(family: str) -> None:
    model = models.tiny(family)
    batches = random_batches(model, samples=5, max_length=9, batch_size=2, seed=3)
    assert [batch["input_ids"].shape[0] for batch in batches] == [2, 2, 1]
    again = random_batches(model, samples=5, max_length=9, batch_size=2, seed=3)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(batches, again, strict=True) for name in a)
    assert ("decoder_input_ids" in batches[0]) == (family == "t5")
    check_batches(model, batches)
    for batch in batches:
        assert run(model, batch) is not None


def test_collate_fills_tokens_and_masks_differently() -> None:
    rows = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]}, {"input_ids": [8], "attention_mask": [1]}]
    batch = collate(rows, fill=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


IDS = torch.tensor([[5, 6], [7, 8]])


@pytest.mark.parametrize(
    ("batch", "code", "words"),
    [
        ({"input_ids": IDS.float()}, "CK-D009", "float32"),
        ({"input_ids": IDS[:0]}, "CK-D009", "empty"),
        ({"input_ids": [[1, 2]]}, "CK-D009", "list"),
        ({"inputs_embeds": torch.full((1, 2, 64), torch.nan)}, "CK-D009", "NaN"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 3)}, "CK-D009", r"\(2, 3\)"),
        ({"input_ids": IDS, "attention_mask": torch.zeros(2, 2)}, "CK-D007", "padding"),
        ({"input_ids": torch.tensor([[1, 2], [3, 512]])}, "CK-D006", "512"),
        ({"input_ids": torch.tensor([[1, -100]])}, "CK-D006", "-100"),
    ],
)
def test_bad_batches_are_refused_with_their_place(batch: dict[str, torch.Tensor], code: str, words: str) -> None:
    good = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    with pytest.raises(DataError, match=words) as caught:
        check_batches(models.tiny("bert"), [good, batch])
    assert caught.value.code == code
    assert "batch 1" in caught.value.where


def test_no_batches_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        check_batches(models.tiny("bert"), [])
    assert caught.value.code == "CK-D003"
