"""What a model writes: equal to decoding token by token, cut at the end token, within the model's limits."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from compresskit.calibrate.batches import collate, encode
from compresskit.checkpoint.source import open_source
from compresskit.train.generation import Decoding, end_tokens, next_token_loss, prompt_of, whole_texts, write
from tests import models

TEXTS = ["the cat sat on the mat", "a big dog runs", "good film", "we like it not but the book of the dog is bad"]
GREEDY = Decoding(prompt=3, new_tokens=6, temperature=0.0)


def batch_for(name: str) -> dict[str, torch.Tensor]:
    return collate(encode(TEXTS, models.tokenizer(), models.tiny(name, task="lm")))


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_greedy_writing_is_the_likeliest_token_each_time(name: str) -> None:
    model, batch = models.tiny(name, task="lm"), batch_for(name)
    for ids, mask, answer in zip(batch["input_ids"], batch["attention_mask"], write(model, batch, GREEDY), strict=True):
        text = prompt_of(ids[mask.bool()].tolist(), 3)
        expected: list[int] = []
        while len(expected) < 6 and models.LAST not in expected:
            with torch.no_grad():
                expected.append(int(model(torch.tensor([text + expected])).logits[0, -1].argmax()))
        assert answer == expected


def test_an_encoder_decoder_answers_the_whole_text() -> None:
    model, batch = models.tiny("t5", task="lm"), batch_for("t5")
    answers = write(model, batch, GREEDY)
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        first = model(**inputs, decoder_input_ids=torch.full((4, 1), models.PAD)).logits[:, -1].argmax(-1)
    assert [answer[0] for answer in answers] == first.tolist()
    texts = whole_texts(batch, answers, GREEDY, models.PAD)
    assert texts.answers() == answers
    assert {row["decoder_input_ids"][0] for row in texts.rows} == {models.PAD}
    assert [len(row["input_ids"]) for row in texts.rows] == batch["attention_mask"].sum(1).tolist()


def test_nothing_follows_the_end_token() -> None:
    model = models.tiny("gpt2", task="lm")
    with torch.no_grad():
        # A head that finds the end token likely everywhere.
        model.lm_head = torch.nn.Linear(models.HIDDEN, models.VOCABULARY)
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()[models.LAST] = 1
    assert end_tokens(model) == [models.LAST]
    assert write(model, batch_for("gpt2"), GREEDY) == [[models.LAST]] * 4


def test_equal_states_give_equal_samples_and_others_others() -> None:
    model, batch = models.tiny("gpt2", task="lm"), batch_for("gpt2")
    found = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found.append(write(model, batch, Decoding(3, 8, 1.0)))
    assert found[0] == found[1] != found[2]


def test_texts_stay_within_the_models_positions() -> None:
    model = models.tiny("gpt2", task="lm", n_positions=10)
    batch = {"input_ids": torch.full((2, 10), 7), "attention_mask": torch.ones(2, 10, dtype=torch.long)}
    for prompt, expected in ((4, 6), (40, 1)):
        answers = write(model, batch, Decoding(prompt, 50, 0.0))
        assert [len(answer) for answer in answers] == [expected] * 2
    assert len(write(model, batch, Decoding(4, 50, 0.0), limit=7)[0]) == 3


def test_prompts_leave_at_least_a_token_to_be_written() -> None:
    assert prompt_of([5, 6, 7], 2) == [5, 6]
    assert prompt_of([5, 6, 7], 9) == [5, 6]
    assert prompt_of([5], 2) == [5]


def test_positions_whose_next_token_was_written() -> None:
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 4, [1, 1, 0, 0]]),
    }
    texts = whole_texts(batch, [[9], [10, 11, 12]], Decoding(3, 4), 0)
    assert texts.batch()["input_ids"].tolist() == [[5, 6, 7, 9], [5, 10, 11, 12]]
    assert texts.predicted().int().tolist() == [[0, 0, 1, 0], [1, 1, 1, 0]]


def test_cross_entropy_by_hand() -> None:
    ids = torch.tensor([[0, 1, 1]])
    logits = torch.tensor([[[0.0, math.log(3.0)], [math.log(4.0), 0.0], [9.0, 0.0]]])
    every, last = torch.tensor([[True, True, False]]), torch.tensor([[False, True, False]])
    # The second token has probability 3/4 after the first, the third 1/5 after the second.
    assert float(next_token_loss(logits, ids, every)) == pytest.approx((-math.log(0.75) - math.log(0.2)) / 2)
    assert float(next_token_loss(logits, ids, last)) == pytest.approx(-math.log(0.2))


def test_a_real_model_tells_its_story(shared_data: Path) -> None:
    folder = shared_data / "models" / "stories260K" / "hf"
    if not folder.is_dir():
        pytest.skip("stories260K isn't in ../shared/data/models")
    source = open_source(str(folder))
    model, tokenizer = source.load_model(), source.load_tokenizer()
    assert tokenizer is not None
    batch = collate(encode(["Once upon a time, there", "Once upon"], tokenizer, model))
    answers = write(model, batch, Decoding(prompt=5, new_tokens=60, temperature=0.0))
    told = [
        tokenizer.decode(row["input_ids"], skip_special_tokens=True)
        for row in whole_texts(batch, answers, Decoding(5), 0).rows
    ]
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day,"
    assert all(text.startswith(story) for text in told), told
