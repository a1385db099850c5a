"""Linear attention against its oracle, and what it costs."""

from __future__ import annotations

import pytest
import torch

from compresskit.nn import linear_attention as kernel
from compresskit.nn.attention_mask import Seen
from compresskit.nn.linear_attention import linear_attention
from compresskit.numerics import attention as naive
from tests.nn.attention_cases import LargestTensor, padding, qkv

LENGTHS = [(1, 1), (5, 5), (8, 8), (30, 30), (32, 32), (1, 30), (7, 30), (12, 30)]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "CHUNK", 8)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_equals_the_oracle(causal: bool, side: str, kv_heads: int) -> None:
    for queries, keys in LENGTHS:
        query, key, value = qkv(3, 4, kv_heads, queries, keys)
        real = padding(side, 3, keys)
        allowed = naive.visible(queries, keys, causal=causal, padding=real)
        found = linear_attention(query, key, value, Seen(causal, real))
        expected = naive.linear_attention(query, key, value, allowed=allowed).transpose(1, 2)
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_any_mask_and_bias(kv_heads: int) -> None:
    query, key, value = qkv(2, 4, kv_heads, 9, 9)
    allowed = torch.rand(2, 1, 9, 9) < 0.6
    found = linear_attention(query, key, value, Seen(False, None, allowed))
    expected = naive.linear_attention(query, key, value, allowed=allowed).transpose(1, 2)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    # On top of the kernel a bias multiplies each weight by its exponential, as in softmax.
    bias = torch.randn(1, 4, 9, 9)
    found = linear_attention(query, key, value, Seen(False, None, allowed, bias))
    expected = naive.linear_attention(query, key, value, allowed=allowed * bias.double().exp()).transpose(1, 2)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_the_future_has_no_influence() -> None:
    query, key, value = qkv(1, 2, 2, 30, 30)
    before = linear_attention(query, key, value, Seen(True))
    key, value = key.clone(), value.clone()
    key[:, :, 13:] += 2
    value[:, :, 13:] -= 5
    after = linear_attention(query, key, value, Seen(True))
    assert torch.equal(before[:, :13], after[:, :13])
    assert (before[:, 13:] - after[:, 13:]).abs().amax(dim=(0, 2, 3)).min() > 1e-2


def test_sums_of_half_precision_are_in_float32() -> None:
    query, key, value = (x.bfloat16() for x in qkv(1, 2, 2, 4096, 4096))
    value = value + 1
    found = linear_attention(query, key, value, Seen(False))
    assert found.dtype == torch.bfloat16
    expected = naive.linear_attention(query[:, :, :50], key, value).transpose(1, 2)
    # Summed in bfloat16, thousands of addends would be lost; only the result's own rounding, 2^-8, may remain.
    torch.testing.assert_close(found[:, :50].double(), expected, atol=1e-2, rtol=1e-2)


def test_large_inputs_stay_finite() -> None:
    query, key, value = qkv(1, 2, 2, 20, 20)
    found = linear_attention(-300 * query.abs(), -300 * key.abs(), value, Seen(True))
    assert found.isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_equal_the_oracle_s(causal: bool) -> None:
    tensors = [x.requires_grad_() for x in qkv(2, 4, 2, 20, 20)]
    target = torch.randn(2, 20, 4, 8)
    (linear_attention(*tensors, Seen(causal)) * target).sum().backward()
    found = [x.grad.clone() for x in tensors]
    for x in tensors:
        x.grad = None
    allowed = naive.visible(20, 20, causal=causal)
    (naive.linear_attention(*tensors, allowed=allowed).transpose(1, 2) * target).sum().backward()
    for mine, x in zip(found, tensors, strict=True):
        torch.testing.assert_close(mine, x.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_memory_is_linear_in_the_length(causal: bool) -> None:
    def largest(length: int) -> int:
        query, key, value = qkv(2, 4, 4, length, length)
        with LargestTensor() as found, torch.no_grad():
            linear_attention(query, key, value, Seen(causal, padding("right", 2, length)))
        return found.numel

    assert largest(4096) <= 4.1 * largest(1024) < 4096 * 4096 / 4
