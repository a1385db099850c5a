"""Several predictions a row: their numbers, their logits, and a target of the likeliest words and the rest."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import TokenClassifierOutput

from compresskit.numerics.temperatures import automatic_k, entropy
from compresskit.train.positions import Positions, run_positions, targets_at

ROWS = [torch.tensor([3, 4, 5]), torch.tensor([6]), torch.tensor([7, 8])]


class Table(nn.Module):
    """Logits by the token alone."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, ids: Tensor) -> TokenClassifierOutput:
        return TokenClassifierOutput(logits=self.table(ids))


def collate(rows: list[Tensor]) -> dict[str, Tensor]:
    return {"ids": nn.utils.rnn.pad_sequence(rows, batch_first=True)}


def test_positions_come_in_the_order_of_the_rows_without_padding() -> None:
    positions = Positions.of([torch.tensor([0, 2]), torch.tensor([0]), torch.tensor([1])])
    assert positions.starts.tolist() == [0, 2, 3, 4]
    assert positions.numbers(torch.tensor([2, 0])).tolist() == [3, 0, 1]
    model = Table()
    found = targets_at(run_positions(model, ROWS, collate, positions, len), 4, None)
    assert list(found) == ["logits"]
    torch.testing.assert_close(found["logits"], model.table.weight[[3, 5, 6, 8]].detach())


def test_the_rest_of_a_distribution_is_one_class() -> None:
    positions = Positions.of([torch.tensor([0, 1, 2]), torch.tensor([0]), torch.tensor([0, 1])])
    model = Table()
    found = targets_at(run_positions(model, ROWS, collate, positions, len), 6, 2)
    p = model.table.weight[[3, 4, 5, 6, 7, 8]].softmax(-1).detach()
    best = p.topk(2)
    expected = torch.cat([best.values, 1 - best.values.sum(1, keepdim=True)], 1)
    torch.testing.assert_close(found["logits"].exp(), expected)
    assert torch.equal(found["words"], best.indices)
    with_words = Positions(positions.places, positions.starts, found["words"])
    same = with_words.kept(model.table.weight[[4, 6]].detach(), torch.tensor([1, 3]))
    torch.testing.assert_close(same, found["logits"][[1, 3]])
    # Entropy, and with it k, goes by the k + 1 classes.
    row = expected[0]
    assert entropy(found["logits"][:1]).item() == pytest.approx(float(-(row * row.log()).sum()))
    assert automatic_k(found["logits"]) == pytest.approx(math.log(2) / entropy(found["logits"]).median().item())
