from __future__ import annotations

import pytest
import torch

from compresskit.calibrate.batches import random_batches
from compresskit.calibrate.forward import Attended, attention_mask, evaluating, first_tensor, hooked, run, stop_here
from compresskit.errors import InternalError
from tests import models


def test_each_module_gets_its_own_mode_back_also_after_a_failure() -> None:
    model = models.tiny("bert").train()
    model.pooler.eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    with pytest.raises(IndexError), evaluating(model):
        run(model, {"input_ids": torch.full((1, 2), 10**6)})
    assert model.training
    assert model.encoder.training
    assert not model.pooler.training


def test_hooks_come_off_also_where_a_path_is_wrong() -> None:
    model = models.tiny("bert")
    with pytest.raises(AttributeError), hooked(model, {"pooler": stop_here, "nowhere": stop_here}):
        pass
    assert not model.pooler._forward_pre_hooks


def test_a_stopped_pass_gives_nothing_and_runs_nothing_behind() -> None:
    model, seen = models.tiny("bert"), []
    handle = model.encoder.layer[2].register_forward_hook(lambda *_: seen.append(2))
    with hooked(model, after={"encoder.layer.1": stop_here}):
        assert run(model, random_batches(model)[0]) is None
    assert seen == []
    assert run(model, random_batches(model)[0]) is not None
    assert seen == [2]
    handle.remove()


def test_no_cache_is_built() -> None:
    model = models.tiny("llama", task="lm")
    assert run(model, random_batches(model)[0]).past_key_values is None


def test_the_first_tensor_may_be_named() -> None:
    x = torch.ones(1)
    assert first_tensor((None, x), {}, "here") is x
    assert first_tensor((), {"flag": True, "hidden_states": x}, "here") is x
    with pytest.raises(InternalError, match="without a tensor") as caught:
        first_tensor((), {}, "here")
    assert caught.value.code == "CK-D013"


def test_without_a_mask_all_tokens_are_attended() -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    assert bool(attention_mask({"input_ids": ids}).all())
    with pytest.raises(InternalError):
        attention_mask({})


def test_rows_are_attended_tokens_in_any_shape_of_input() -> None:
    model = models.tiny("bert")
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.int64), "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    attended = Attended(model)
    x = torch.arange(12.0).reshape(2, 3, 2)
    expected = x.reshape(6, 2)[[0, 1, 3]]
    assert torch.equal(attended.rows("any", x, batch), expected)
    assert torch.equal(attended.rows("any", x.reshape(6, 2), batch), expected)
    pooled = torch.ones(2, 5)
    assert torch.equal(attended.rows("pooler.dense", pooled, batch), pooled)


def test_which_tokens_a_module_of_an_encoder_decoder_reads() -> None:
    attended = Attended(models.tiny("t5", task="lm"))
    cross = "decoder.block.0.layer.1.EncDecAttention"
    reads = {
        path: attended.reads_decoder(path)
        for path in ("encoder.block.0", "decoder.block.0", f"{cross}.q", f"{cross}.k", f"{cross}.v.down", "lm_head")
    }
    assert list(reads.values()) == [False, True, True, False, False, True]
