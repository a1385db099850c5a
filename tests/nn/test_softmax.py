"""The fused softmax attention against its oracle."""

from __future__ import annotations

import pytest
import torch

from compresskit.nn.softmax import attend
from compresskit.numerics import attention as naive
from tests.nn.attention_cases import qkv


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_equals_the_oracle(kv_heads: int, masked: bool, biased: bool) -> None:
    query, key, value = qkv(2, 4, kv_heads, 5, 7)
    allowed = torch.rand(2, 1, 5, 7) < 0.6 if masked else None
    if allowed is not None:
        allowed[0, 0, 3] = False
    bias = torch.randn(1, 4, 5, 7) if biased else None
    found = attend(query, key, value, allowed, bias, 0.4, 0.0)
    expected = naive.softmax_attention(query, key, value, allowed=allowed, bias=bias, scale=0.4)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_dropout_is_applied() -> None:
    query, key, value = qkv(2, 4, 4, 5, 7)
    kept = attend(query, key, value, None, None, None, 0.0)
    dropped = attend(query, key, value, None, None, None, 0.5)
    assert (kept - dropped).abs().max() > 1e-2
