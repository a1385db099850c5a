"""The oracles against loops that spell out their definitions, and against torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compresskit.numerics import attention as naive


def tensors(batch: int = 2, heads: int = 4, kv_heads: int = 4, queries: int = 6, keys: int = 6, dim: int = 5):
    query = torch.randn(batch, heads, queries, dim)
    return query, torch.randn(batch, kv_heads, keys, dim), torch.randn(batch, kv_heads, keys, dim)


PADDINGS = {
    "none": None,
    "right": torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]]).bool(),
    "left": torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]]).bool(),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("window", "global_tokens"), [(1, 0), (3, 0), (2, 1), (2, 3), (7, 2)])
@pytest.mark.parametrize("queries", [7, 2])
def test_visible_is_its_definition(causal: bool, padding: str, window: int, global_tokens: int, queries: int) -> None:
    real = PADDINGS[padding]
    found = naive.visible(queries, 7, causal=causal, padding=real, window=window, global_tokens=global_tokens)
    rows = [[1] * 7] if real is None else real.tolist()
    for row, flags in enumerate(rows):
        first = flags.index(1)
        special = range(first, first + global_tokens)
        for query in range(queries):
            at = 7 - queries + query
            for key in range(7):
                near = abs(at - key) < window or key in special or at in special
                expected = near and bool(flags[key]) and (not causal or key <= at)
                assert bool(found[row, 0, query, key]) == expected, (row, at, key)


def test_without_a_window_everything_real_is_visible() -> None:
    assert naive.visible(4, 4).all()
    assert torch.equal(naive.visible(4, 4, causal=True)[0, 0], torch.ones(4, 4).tril().bool())


def by_loops(query: Tensor, key: Tensor, value: Tensor, weight, allowed: Tensor) -> Tensor:
    """Attention one pair at a time; ``weight(q, k)`` is the unnormalised weight."""
    batch, heads, queries, _ = query.shape
    group = heads // key.shape[1]
    output = torch.zeros(*query.shape[:3], value.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                total = 0.0
                for j in range(key.shape[2]):
                    if allowed[b, 0, i, j]:
                        w = weight(query[b, h, i].double(), key[b, h // group, j].double())
                        output[b, h, i] += w * value[b, h // group, j].double()
                        total += w
                if total:
                    output[b, h, i] /= total
    return output


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_both_attentions_equal_loops(kv_heads: int) -> None:
    query, key, value = tensors(kv_heads=kv_heads)
    allowed = torch.rand(2, 1, 6, 6) < 0.6
    allowed[1, 0, 2] = False

    def soft(q: Tensor, k: Tensor) -> float:
        return math.exp(float(q @ k) * 0.3)

    def kernel(q: Tensor, k: Tensor) -> float:
        phi = [torch.nn.functional.elu(x) + 1 for x in (q, k)]
        return float(phi[0] @ phi[1])

    found = naive.softmax_attention(query, key, value, allowed=allowed, scale=0.3)
    torch.testing.assert_close(found, by_loops(query, key, value, soft, allowed))
    assert found[1, :, 2].abs().max() == 0
    found = naive.linear_attention(query, key, value, allowed=allowed)
    torch.testing.assert_close(found, by_loops(query, key, value, kernel, allowed))
    assert found[1, :, 2].abs().max() == 0


def test_softmax_attention_equals_torch_with_a_bias() -> None:
    query, key, value = (x.double() for x in tensors())
    bias = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    torch.testing.assert_close(naive.softmax_attention(query, key, value, bias=bias), expected)


def test_a_window_of_the_whole_length_is_softmax_attention() -> None:
    query, key, value = tensors()
    allowed = naive.visible(6, 6, window=6)
    expected = naive.softmax_attention(query, key, value)
    assert torch.equal(naive.softmax_attention(query, key, value, allowed=allowed), expected)


def test_linear_attention_is_a_recurrence() -> None:
    query, key, value = (x.double() for x in tensors(heads=2, kv_heads=2))
    phi_query, phi_key = naive.elu_feature_map(query), naive.elu_feature_map(key)
    state, total = torch.zeros(2, 2, 5, 5, dtype=torch.float64), torch.zeros(2, 2, 5, dtype=torch.float64)
    rows = []
    for t in range(6):
        state = state + phi_key[:, :, t, :, None] * value[:, :, t, None, :]
        total = total + phi_key[:, :, t]
        rows.append((phi_query[:, :, t, None] @ state)[:, :, 0] / (phi_query[:, :, t] * total).sum(-1, keepdim=True))
    found = naive.linear_attention(query, key, value, allowed=naive.visible(6, 6, causal=True))
    torch.testing.assert_close(found, torch.stack(rows, dim=2))


def test_the_feature_map_is_elu_plus_one() -> None:
    x = torch.linspace(-5, 5, 21, dtype=torch.float64)
    torch.testing.assert_close(naive.elu_feature_map(x), torch.nn.functional.elu(x) + 1)
    assert (naive.elu_feature_map(x) > 0).all()
