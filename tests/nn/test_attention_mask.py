"""The mask function: cheap where it can be, and never saying anything else than the stock one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, PretrainedConfig, StaticCache
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    create_chunked_causal_mask,
    create_sliding_window_causal_mask,
)

from compresskit.errors import ModelError
from compresskit.nn import attention
from compresskit.nn.attention_mask import read_mask, stock_mask
from tests import models
from tests.nn.attention_cases import padding, qkv


def llama(implementation: str = attention.NAME, **changes: Any) -> PretrainedConfig:
    config = models.config("llama", **changes)
    assert isinstance(config, LlamaConfig)
    config._attn_implementation = implementation
    return config


def arguments(config: PretrainedConfig, mask: Tensor | None, queries: int = 6, cache: Any = None) -> dict[str, Any]:
    embeddings = torch.zeros(3, queries, 8)
    return {"config": config, "inputs_embeds": embeddings, "attention_mask": mask, "past_key_values": cache}


def filled(config: PretrainedConfig, tokens: int) -> DynamicCache:
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        cache.update(torch.zeros(3, 2, tokens, 8), torch.zeros(3, 2, tokens, 8), layer)
    return cache


def test_no_mask_without_padding() -> None:
    for mask in (None, torch.ones(3, 6, dtype=torch.long)):
        assert create_causal_mask(**arguments(llama(), mask)) is None
        assert create_bidirectional_mask(**arguments(llama(), mask)) is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_alone_is_passed_on(side: str) -> None:
    real = padding(side, 3, 6)
    assert real is not None
    assert torch.equal(create_causal_mask(**arguments(llama(), real.long())), real)
    assert torch.equal(create_bidirectional_mask(**arguments(llama(), real.long())), real[:, None, None, :])


def test_several_queries_after_a_cache_need_a_mask() -> None:
    config = llama()
    mask = create_causal_mask(**arguments(config, None, 2, filled(config, 4)))
    assert mask.shape == (3, 6)
    assert mask.all()
    assert create_causal_mask(**arguments(config, None, 1, filled(config, 4))) is None


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("queries", [6, 2, 1])
@pytest.mark.parametrize("sliding", [None, 3])
def test_ordinary_layers_see_what_the_stock_mask_shows(side: str, queries: int, sliding: int | None) -> None:
    ours = llama(sliding_window=sliding)
    stock = llama("sdpa", sliding_window=sliding)
    make = create_causal_mask if sliding is None else create_sliding_window_causal_mask
    real = padding(side, 3, 6)
    caches = [filled(config, 6 - queries) if queries < 6 else None for config in (ours, stock)]
    mask = make(**arguments(ours, None if real is None else real.long(), queries, caches[0]))
    expected = make(
        **arguments(stock, None if real is None else real.long(), queries, caches[1]), allow_is_causal_skip=False
    )
    keys = expected.shape[-1]  # of a sliding cache only the last ones
    assert mask is None or mask.shape == (3, keys)
    if mask is None:
        assert real is None
        mask = torch.ones(3, keys, dtype=torch.bool)
    found = stock_mask(mask, queries, keys, causal=True, sliding=sliding)
    assert torch.equal(found.expand_as(expected), expected)


def test_chunked_and_packed_patterns_are_written_out() -> None:
    chunked = [
        create_chunked_causal_mask(**arguments(llama(name, attention_chunk_size=4), None))
        for name in (attention.NAME, "sdpa")
    ]
    assert chunked[0].shape == (3, 1, 6, 6)
    assert torch.equal(*chunked)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]]).expand(3, -1)
    packed = [
        create_causal_mask(**arguments(llama(name), None), position_ids=positions) for name in (attention.NAME, "sdpa")
    ]
    assert packed[0].shape == (3, 1, 6, 6)
    assert torch.equal(*packed)


def test_a_static_cache_is_written_out() -> None:
    masks = []
    for name in (attention.NAME, "sdpa"):
        config = llama(name)
        cache = StaticCache(config=config, max_cache_len=10)
        for layer in range(config.num_hidden_layers):
            cache.update(torch.zeros(3, 2, 4, 8), torch.zeros(3, 2, 4, 8), layer)
        masks.append(create_causal_mask(**arguments(config, torch.ones(3, 6, dtype=torch.long), 2, cache)))
    assert masks[0].shape == (3, 1, 2, 10)
    assert torch.equal(*masks)


def test_a_decoder_made_bidirectional_is_told_so() -> None:
    mask = create_causal_mask(**arguments(llama(is_causal=False), None))
    query, key, _ = qkv(3, 4, 4, 6, 6)
    seen = read_mask(mask, query, key, causal=True)
    assert not seen.causal
    assert seen.dense is not None
    assert seen.dense.all()


@pytest.mark.parametrize("causal", [False, True])
def test_every_form_says_the_same(causal: bool) -> None:
    query, key, _ = qkv(3, 4, 4, 6, 6)
    real = padding("right", 3, 6)
    assert real is not None
    structure = torch.ones(6, 6, dtype=torch.bool)
    allowed = real[:, None, None, :] & (structure.tril() if causal else structure)
    lowest = torch.finfo(torch.float32).min
    forms = [real, real.long(), allowed, torch.where(allowed, 0.0, lowest), torch.where(allowed, 0.0, -torch.inf)]
    for mask in forms:
        seen = read_mask(mask, query, key, causal=causal)
        shown = seen.dense
        if shown is None:
            assert seen.padding is not None
            shown = stock_mask(seen.padding, 6, 6, causal=seen.causal, sliding=None)
        assert torch.equal(shown.expand_as(allowed), allowed)
    assert read_mask(None, query, key, causal=causal).causal == causal


def test_what_a_float_mask_adds_is_kept() -> None:
    query, key, _ = qkv(3, 4, 4, 6, 6)
    mask, bias = torch.randn(3, 1, 1, 6), torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(read_mask(mask, query, key, causal=False, bias=bias).bias, mask + bias)
    assert read_mask(mask, query, key, causal=False).bias.shape == (3, 1, 6, 6)  # type: ignore[union-attr]


@pytest.mark.parametrize("mask", [torch.ones(3, 6, 6), object()])
def test_another_form_is_an_error(mask: Any) -> None:
    query, key, _ = qkv(3, 4, 4, 6, 6)
    with pytest.raises(ModelError) as caught:
        read_mask(mask, query, key, causal=False)
    assert caught.value.code == "CK-M052"
