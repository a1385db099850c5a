from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compresskit.core.context import Context
from compresskit.core.targets import resolve
from compresskit.errors import ModelError
from compresskit.methods.quantization.embedding import Embedding
from compresskit.pipeline import checks
from tests import models


def t5_batch() -> dict[str, Tensor]:
    """Both sides padded, each by a mask of its own."""
    batch = models.inputs("t5", padded=True)
    mask = torch.ones_like(batch["decoder_input_ids"])
    mask[1, 4:] = 0
    mask[2, 2:] = 0
    return {**batch, "decoder_attention_mask": mask}


@pytest.mark.parametrize("task", ["base", "lm"])
def test_padding_on_both_sides_of_an_encoder_decoder_model(task: models.Task) -> None:
    assert checks.check_padding(models.tiny("t5", task=task), t5_batch(), "step") is None


def test_half_precision_is_seen_behind_a_quantized_table(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.tiny("gpt2", task="lm").to(torch.bfloat16)
    table = Embedding(bits=8)
    table.apply(model, resolve(model, table).sites, Context())
    assert model.dtype != torch.bfloat16, "the first parameter is a scale"
    monkeypatch.setattr(checks, "padding_deviation", lambda *_: (1e-3, 0.99999))
    assert checks.check_padding(model, {}, "step") is None
    with pytest.raises(ModelError):
        checks.check_padding(models.tiny("gpt2"), {}, "step")


def test_a_model_that_looks_at_padding_is_caught() -> None:
    model, batch = models.tiny("t5"), t5_batch()
    encoder, whole = model.get_submodule("encoder"), torch.ones_like(batch["attention_mask"])
    handle = encoder.register_forward_pre_hook(
        lambda _module, args, kwargs: (
            (args, {**kwargs, "attention_mask": whole[: len(kwargs["input_ids"])]})
            if kwargs["input_ids"].shape[1] == whole.shape[1]
            else None
        ),
        with_kwargs=True,
    )
    with pytest.raises(ModelError) as error:
        checks.check_padding(model, batch, "step")
    handle.remove()
    assert error.value.code == "CK-T052"


def test_rows_of_bfloat16_are_compared_by_more_than_its_own_digits() -> None:
    model = models.tiny("bert").bfloat16()
    worst, cosine = checks.padding_deviation(model, models.inputs("bert", padded=True))
    assert 0.0 < worst < 0.05
    assert 0.999 < cosine < 1.0
