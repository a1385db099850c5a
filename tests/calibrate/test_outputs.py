from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from compresskit.calibrate.batches import random_batches
from compresskit.calibrate.outputs import output_kind, outputs_of, pool, result_mask
from compresskit.errors import ModelError
from tests import models

KINDS = {"base": "embedding", "classifier": "classification", "lm": "language"}


def test_the_kind_follows_from_the_head(family: str) -> None:
    for task in models.tasks(family):
        assert output_kind(models.tiny(family, task=task)) == KINDS[task]


def test_outputs_have_one_row_a_token_or_a_text(family: str) -> None:
    for task in models.tasks(family):
        model = models.tiny(family, task=task)
        batch = random_batches(model, samples=3, max_length=8)[0]
        if family == "t5" and task == "classifier":
            batch = {name: tensor for name, tensor in batch.items() if not name.startswith("decoder")}
        output = outputs_of(model, batch)
        assert not output.requires_grad
        if task == "classifier":
            assert output.shape == (3, models.LABELS)
        else:
            assert output.shape[:2] == result_mask(model, batch).shape


HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]], [[5.0, 6.0], [-7.0, 8.0], [1.0, 0.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (None, [[2.0, 3.0], [-1 / 3, 14 / 3]]),
        ("mean", [[2.0, 3.0], [-1 / 3, 14 / 3]]),
        ("cls", [[1.0, 2.0], [5.0, 6.0]]),
        ("max", [[3.0, 4.0], [5.0, 8.0]]),
        ("lasttoken", [[3.0, 4.0], [1.0, 0.0]]),
    ],
)
def test_pooling_leaves_padding_out(mode: str | None, expected: list[list[float]]) -> None:
    found = pool(HIDDEN, MASK, SimpleNamespace(pooling=mode))
    torch.testing.assert_close(found, torch.tensor(expected))


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(ModelError, match="weightedmean") as caught:
        pool(HIDDEN, MASK, SimpleNamespace(pooling="weightedmean"))
    assert caught.value.code == "CK-M044"
