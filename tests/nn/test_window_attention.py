"""Window attention against its oracle, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compresskit.nn import window_attention as dense
from compresskit.nn import window_blocks as blocks
from compresskit.nn.attention_mask import Seen
from compresskit.nn.window_attention import window_attention
from compresskit.numerics import attention as naive
from tests.nn.attention_cases import LargestTensor, padding, qkv

LENGTHS = [(1, 1), (5, 5), (8, 8), (30, 30), (32, 32), (1, 30), (7, 30), (12, 30)]


@pytest.fixture(params=["blocks", "one dense mask"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to compute it, with blocks so small that there are many, in several passes."""
    monkeypatch.setattr(dense, "DENSE_BELOW", 0 if request.param == "blocks" else 1e9)
    monkeypatch.setattr(dense, "BLOCK", 8)
    monkeypatch.setattr(blocks, "BLOCK", 8)
    monkeypatch.setattr(blocks, "PASS", 3000)
    return str(request.param)


def difference(found: Tensor, expected: Tensor, real: Tensor | None, queries: int) -> float:
    """Largest difference in real rows; all must be finite."""
    assert found.isfinite().all()
    rows = (found.transpose(1, 2) - expected).abs().transpose(1, 2)
    return float(rows[real[:, -queries:]].max() if real is not None else rows.max())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("bias", [None, "shared", "each row"])
def test_equals_the_oracle(path: str, causal: bool, side: str, kv_heads: int, bias: str | None) -> None:
    for queries, keys in LENGTHS:
        if queries != keys and not causal:
            continue
        query, key, value = qkv(3, 4, kv_heads, queries, keys)
        real = padding(side, 3, keys)
        added = None if bias is None else torch.randn(1 if bias == "shared" else 3, 4, queries, keys)
        for window, global_tokens in ((1, 0), (1, 1), (7, 0), (8, 3), (9, 1), (40, 2)):
            allowed = naive.visible(
                queries, keys, causal=causal, padding=real, window=window, global_tokens=global_tokens
            )
            found = window_attention(
                query, key, value, Seen(causal, real, None, added), window=window, global_tokens=global_tokens,
                scaling=0.4,
            )  # fmt: skip
            expected = naive.softmax_attention(query, key, value, allowed=allowed, bias=added, scale=0.4)
            assert difference(found, expected, real, queries) < 1e-5, (queries, keys, window, global_tokens)


def test_a_dense_mask_is_narrowed(path: str) -> None:
    query, key, value = qkv(2, 4, 2, 30, 30)
    packed = torch.ones(2, 1, 30, 30, dtype=torch.bool).tril()
    packed[1, :, 13:, :13] = False
    allowed = naive.visible(30, 30, window=5) & packed
    found = window_attention(query, key, value, Seen(False, None, packed), window=5)
    expected = naive.softmax_attention(query, key, value, allowed=allowed)
    assert difference(found, expected, None, 30) < 1e-5


def test_queries_before_the_end_of_a_static_cache(path: str) -> None:
    query, key, value = qkv(2, 4, 4, 3, 20)
    allowed = torch.zeros(2, 1, 3, 20, dtype=torch.bool)
    expected = torch.zeros(2, 1, 3, 20, dtype=torch.bool)
    for row in range(3):
        allowed[:, :, row, : 10 + row + 1] = True
        expected[:, :, row, 10 + row - 3 : 10 + row + 1] = True
    expected[..., 0] = True
    found = window_attention(query, key, value, Seen(False, None, allowed), window=4, global_tokens=1)
    reference = naive.softmax_attention(query, key, value, allowed=expected)
    assert difference(found, reference, None, 3) < 1e-5


@pytest.mark.parametrize("causal", [False, True])
def test_a_far_token_has_no_influence(path: str, causal: bool) -> None:
    query, key, value = qkv(1, 2, 2, 30, 30)
    before = window_attention(query, key, value, Seen(causal), window=4)
    key, value = key.clone(), value.clone()
    key[:, :, 12] += 3
    value[:, :, 12] -= 5
    change = (window_attention(query, key, value, Seen(causal), window=4) - before).abs().amax(dim=(0, 2, 3))
    reached = set((change > 1e-6).nonzero().flatten().tolist())
    assert reached == (set(range(12, 16)) if causal else set(range(9, 16)))


def test_half_precision_stays_half(path: str) -> None:
    query, key, value = (x.bfloat16() for x in qkv(2, 4, 4, 30, 30))
    bias = torch.randn(1, 4, 30, 30)
    found = window_attention(query, key, value, Seen(True, padding("left", 2, 30), None, bias), window=5)
    assert found.dtype == torch.bfloat16
    allowed = naive.visible(30, 30, causal=True, padding=padding("left", 2, 30), window=5)
    expected = naive.softmax_attention(query, key, value, allowed=allowed, bias=bias)
    assert difference(found, expected, padding("left", 2, 30), 30) < 0.05


def test_gradients_equal_the_oracle_s(path: str) -> None:
    tensors = [x.requires_grad_() for x in qkv(2, 4, 2, 30, 30)]
    allowed = naive.visible(30, 30, window=5, global_tokens=2)
    target = torch.randn(2, 30, 4, 8)
    (window_attention(*tensors, Seen(False), window=5, global_tokens=2) * target).sum().backward()
    found = [x.grad.clone() for x in tensors]
    for x in tensors:
        x.grad = None
    (naive.softmax_attention(*tensors, allowed=allowed).transpose(1, 2) * target).sum().backward()
    for mine, x in zip(found, tensors, strict=True):
        torch.testing.assert_close(mine, x.grad, atol=1e-4, rtol=1e-4)


def cost(length: int, causal: bool) -> tuple[int, int]:
    """Most elements of one tensor, and FLOPs, of a padded batch."""
    query, key, value = qkv(2, 4, 4, length, length)
    seen = Seen(causal, padding("right", 2, length))
    with LargestTensor() as largest, torch.no_grad():
        window_attention(query, key, value, seen, window=16, global_tokens=1)
    # The counter doesn't know the CPU's fused kernel.
    with FlopCounterMode(display=False) as flops, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        window_attention(query, key, value, seen, window=16, global_tokens=1)
    return largest.numel, flops.get_total_flops()


@pytest.mark.parametrize("causal", [False, True])
def test_cost_is_linear_in_the_length(causal: bool) -> None:
    short, long = cost(1024, causal), cost(4096, causal)
    assert long[0] < 4096 * 4096 / 4
    assert long[0] <= 4.1 * short[0]
    assert 0 < long[1] <= 4.1 * short[1]


def test_gathered_keys_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PASS", 200_000)
    query, key, value = qkv(1, 4, 4, 8192, 8192)
    with LargestTensor() as largest, torch.no_grad():
        window_attention(query, key, value, Seen(False), window=64, global_tokens=1)
    # At once it would be 128 blocks of 192 keys, 0.8 million numbers, under a mask of 1.6 million.
    assert largest.numel <= 2 * 200_000


def test_decoding_reads_only_the_window() -> None:
    query, key, value = qkv(2, 4, 2, 1, 5000)
    key, value = key.contiguous(), value.contiguous()
    with LargestTensor() as largest, torch.no_grad():
        window_attention(query, key, value, Seen(True), window=16, global_tokens=2)
    assert largest.numel <= 2 * 2 * 8 * 40
