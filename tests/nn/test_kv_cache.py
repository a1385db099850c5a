from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from compresskit.errors import ModelError
from compresskit.nn import kv_cache
from compresskit.nn.kv_cache import QuantizedCacheLayer, install
from compresskit.numerics.key_values import bytes_per_token
from tests import models


def with_cache(model: Any, **settings: Any) -> Any:
    for module in model.modules():
        if hasattr(module, "layer_idx") and hasattr(module, "is_causal"):
            install(model, module, settings)
    return model


def test_newest_tokens_are_exact_and_old_ones_go_over_by_groups() -> None:
    layer = QuantizedCacheLayer(bits=4, group=4, residual=6)
    states = torch.randn(2, 3, 23, 8)
    exact, _ = layer.update(states[:, :, :15], 2 * states[:, :, :15])
    assert torch.equal(exact, states[:, :, :15])  # a call sees its own tokens
    assert layer.old_keys is not None
    assert (layer.old_keys.codes.shape[2], layer.get_seq_length()) == (8, 15)
    for token in range(15, 23):
        keys, values = layer.update(states[:, :, token : token + 1], 2 * states[:, :, token : token + 1])
        assert torch.equal(keys[:, :, -6:], states[:, :, token - 5 : token + 1])
        assert keys.shape[2] == values.shape[2] == layer.get_seq_length() == token + 1
    assert layer.old_keys.codes.shape[2] == 16
    assert 0 < float((keys - states).abs().max()) < 0.5
    assert torch.equal(layer.whole()[0][:, :, 16:], states[:, :, 16:])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bytes_shrink_by_the_reported_factor(bits: int) -> None:
    model = with_cache(models.tiny("llama", task="lm"), bits=bits, group=16, residual=0)
    ids = models.inputs("llama", 2, 96)["input_ids"]
    with torch.no_grad():
        small = model(ids, use_cache=True).past_key_values
        with kv_cache.without(model):
            plain = model(ids, use_cache=True).past_key_values
    before = sum(layer.keys.nbytes + layer.values.nbytes for layer in plain.layers)
    after = sum(layer.bytes for layer in small.layers)
    heads, dim = plain.layers[0].keys.shape[1], plain.layers[0].keys.shape[3]
    reported = 2 * heads * dim * 4 / bytes_per_token(heads, dim, bits, 16, kv_cache.value_group(dim, 16))
    assert before / after == pytest.approx(reported, rel=1e-9)
    # Of a head's token, 16 numbers: codes, two bytes and two for each of 8 channels' 1/16, and for the value.
    assert reported == pytest.approx(64 / (2 * bits + 2 + 4))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_fewer_bits_lose_more(family: str) -> None:
    """KL to the model with its stock cache, token by token, of 40 tokens after 24."""
    ids = models.inputs(family, 4, 64, seed=2)["input_ids"]
    model = models.tiny(family, task="lm")
    with torch.no_grad():
        wanted = model(ids, use_cache=False).logits[:, 24:].log_softmax(-1)

    def loss(bits: int) -> float:
        with_cache(model, bits=bits, group=8, residual=8)
        with torch.no_grad():
            cache, found = model(ids[:, :24], use_cache=True).past_key_values, []
            for token in range(24, 64):
                found.append(model(ids[:, token : token + 1], past_key_values=cache, use_cache=True).logits)
        logits = torch.cat(found, 1).log_softmax(-1)
        return float((wanted.exp() * (wanted - logits)).sum(-1).mean())

    losses = [loss(bits) for bits in (8, 4, 2)]
    assert 0 < losses[0] < losses[1] < losses[2]
    assert losses[0] < 1e-3


def test_a_window_longer_than_the_text_is_the_identity_in_generate() -> None:
    """With padding on the left, with beams, and after a cache of the user's own."""
    model: Any = models.tiny("llama", task="lm")
    batch = models.inputs("llama", 3, 12, padded=True, seed=4)
    batch = {"input_ids": batch["input_ids"].flip(1), "attention_mask": batch["attention_mask"].flip(1)}
    options: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    wanted = {beams: model.generate(**batch, **options, num_beams=beams) for beams in (1, 3)}
    with_cache(model, bits=2, group=4, residual=64)
    for beams, expected in wanted.items():
        assert torch.equal(model.generate(**batch, **options, num_beams=beams), expected)
    cache = DynamicCache(config=model.config)
    assert torch.equal(model.generate(**batch, **options, past_key_values=cache), wanted[1])
    assert all(isinstance(layer, QuantizedCacheLayer) for layer in cache.layers)
    static = StaticCache(config=model.config, max_cache_len=32)
    assert torch.equal(model.generate(**batch, **options, past_key_values=static), wanted[1])


def test_beams_take_their_quantized_tokens_along() -> None:
    """What beam search writes is what scores best with the cache: codes are reordered, not only the window."""
    layer = QuantizedCacheLayer(bits=8, group=2, residual=0)
    states = torch.randn(3, 2, 6, 8)
    layer.update(states, states)
    before, order = layer.whole()[0], torch.tensor([2, 0, 0])
    layer.reorder_cache(order)
    assert torch.equal(layer.whole()[0], before[order])
    layer.batch_repeat_interleave(2)
    assert torch.equal(layer.whole()[0], before[order].repeat_interleave(2, 0))
    model = with_cache(models.tiny("gpt2", task="lm"), bits=8, group=2, residual=2)
    ids = models.inputs("gpt2", 2, 10)["input_ids"]
    plain: Any = models.tiny("gpt2", task="lm")
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "num_beams": 4, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), plain.generate(ids, **options))


def test_what_it_can_not_do_is_refused() -> None:
    layer = QuantizedCacheLayer(bits=4, group=4, residual=0)
    with pytest.raises(ModelError) as caught:
        layer.crop(-1)
    assert caught.value.code == "CK-T067"
    with pytest.raises(ModelError) as caught:
        layer.update(torch.full((1, 1, 4, 8), 1e6), torch.ones(1, 1, 4, 8))
    assert caught.value.code == "CK-T066"
    model = models.tiny("gpt2", task="lm")
    for settings in ({"bits": 3}, {"bits": 4, "groups": 8}, {"bits": 4, "residual": -1}):
        with pytest.raises(ModelError) as caught:
            with_cache(model, **settings)
        assert caught.value.code == "CK-T065"
