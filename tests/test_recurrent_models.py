"""The classifier with an LSTM or GRU: saved and loaded, blind to padding, its poolings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.save import save_checkpoint
from compresskit.checkpoint.source import open_source
from compresskit.models.recurrent import RecurrentForSequenceClassification
from compresskit.models.settings import RecurrentConfig


def build(cell: str = "lstm", **settings: object) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "word_size": 12, "hidden": 8, "num_labels": 3}
    return RecurrentForSequenceClassification(RecurrentConfig(cell=cell, **{**sizes, **settings})).eval()


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5, [1] * 6 + [0] * 3])
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_saved_and_loaded_by_everyone(cell: str, tmp_path: Path) -> None:
    model, inputs = build(cell), batch()
    with torch.no_grad():
        expected = model(**inputs).logits
    model.save_pretrained(tmp_path / "plain")
    source = open_source(tmp_path / "plain")
    saved = save_checkpoint(source.load_model(), tmp_path / "ours", source=source).path
    # The stock loader's tensors aren't aligned, and torch computes with them in another order.
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    for again, tolerance in ((load_model(tmp_path / "plain"), 0), (load_model(saved), 0), (stock, 1e-7)):
        assert type(again) is RecurrentForSequenceClassification
        with torch.no_grad():
            torch.testing.assert_close(again(**inputs).logits, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_padding_changes_nothing(pooling: str, bidirectional: bool) -> None:
    model, inputs = build(pooling=pooling, bidirectional=bidirectional), batch()
    with torch.no_grad():
        together = model(**inputs).logits
        for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
            alone = model(input_ids=inputs["input_ids"][row : row + 1, :length]).logits
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-6)


def test_poolings_by_hand() -> None:
    states = torch.tensor([[[0.1, -0.5], [0.3, -0.7], [0.9, 0.9]]])
    mask = torch.tensor([[1, 1, 0]])
    last = torch.tensor([[0.3, -0.7]])
    found = {name: build(pooling=name)._pooled(states, last, mask) for name in ("last", "mean", "max")}
    assert torch.equal(found["last"], last)
    torch.testing.assert_close(found["mean"], torch.tensor([[0.2, -0.6]]))
    assert torch.equal(found["max"], torch.tensor([[0.3, -0.5]]))


def test_it_learns() -> None:
    model, inputs = build().train(), batch()
    labels = torch.tensor([0, 1, 2])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]


@pytest.mark.parametrize("settings", [{"cell": "rnn"}, {"pooling": "sum"}])
def test_wrong_settings(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="no model with"):
        build(**settings)
