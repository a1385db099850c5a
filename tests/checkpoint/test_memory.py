"""Equal values laid out otherwise give other bits; ``order_memory`` makes the layout one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from compresskit.checkpoint.load import attach, load_model
from compresskit.checkpoint.memory import ALIGNMENT, order_memory
from tests import models
from tests.checkpoint import edits


def test_tensors_are_moved_and_keep_values_and_ties() -> None:
    model = models.tiny("gpt2", task="lm")
    model.register_buffer("odd", torch.arange(9)[1:])
    model.transformer.h[0].mlp.c_fc.weight.data = model.transformer.h[0].mlp.c_fc.weight.data.T.clone().T
    room = torch.zeros(model.transformer.wte.weight.numel() + 1)
    room[1:] = model.transformer.wte.weight.data.flatten()
    model.transformer.wte.weight.data = room[1:].view_as(model.transformer.wte.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = model.transformer.ln_f.weight.data_ptr()

    order_memory(model)

    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(t.is_contiguous() and t.data_ptr() % ALIGNMENT == 0 for t in after.values())
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.transformer.ln_f.weight.data_ptr() == kept
    assert isinstance(model.transformer.wte.weight, nn.Parameter)


def test_the_reloaded_model_computes_the_same_bits_for_single_rows(tmp_path: Path) -> None:
    model = models.tiny("bert", task="classifier")
    edits.uneven_widths(model)
    attach(model)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    loaded = load_model(tmp_path)
    for length in (2, 5, 7, 16):
        batch = models.inputs("bert", batch=1, length=length)
        assert torch.equal(models.output(loaded, batch), models.output(model, batch))
