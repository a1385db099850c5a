"""Naive attention in float64: what the efficient kernels of ``compresskit.nn`` are compared with.

Shapes: B batch, H query heads, H' key-value heads (H a multiple of H'), Q queries, K keys, D head dimension. Queries
are the last Q of the K positions, so that query i stands at position K - Q + i. Nothing here is fast.
"""

from __future__ import annotations

import torch
from torch import Tensor


def visible(
    query_length: int,
    key_length: int,
    *,
    causal: bool = False,
    padding: Tensor | None = None,
    window: int | None = None,
    global_tokens: int = 0,
) -> Tensor:
    """Which key each query may attend to, (B, 1, Q, K) bool; B is 1 without ``padding``.

    Args:
        causal: no key after the query.
        padding: (B, K), True where a token is real; the others are never attended to.
        window: key j is seen from i where |i - j| < window; None means everywhere (Longformer, arXiv 2004.05150).
        global_tokens: the first so many positions from the first real one on, which every query sees; without
            ``causal`` they also see every key.
    """
    query = torch.arange(key_length - query_length, key_length)[:, None]
    key = torch.arange(key_length)[None, :]
    real = torch.ones(1, key_length, dtype=torch.bool) if padding is None else padding.bool().cpu()
    seen = torch.ones(real.shape[0], query_length, key_length, dtype=torch.bool)
    if window is not None:
        first = real.int().argmax(1)[:, None, None]
        is_global = [(at >= first) & (at < first + global_tokens) for at in (query, key)]
        seen = seen & (((query - key).abs() < window) | is_global[0] | is_global[1])
    if causal:
        seen = seen & (key <= query)
    return (seen & real[:, None, :])[:, None]


def softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    allowed: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale · Q Kᵀ + bias) V over the allowed keys, (B, H, Q, D); a query that sees no key gives zeros.

    Args:
        query: (B, H, Q, D). key, value: (B, H', K, D).
        allowed: broadcasts to (B, H, Q, K) bool.
        bias: broadcasts to (B, H, Q, K), added to the scores (T5's relative positions).
        scale: D^-0.5 by default.
    """
    query, key, value = _double(query, key, value)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.double()
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return torch.nan_to_num(scores.softmax(-1), nan=0.0) @ value


def elu_feature_map(x: Tensor) -> Tensor:
    """φ(x) = elu(x) + 1 > 0, of linear attention (Katharopoulos et al. 2020, arXiv 2006.16236, eq. 7)."""
    return torch.where(x > 0, x + 1, torch.exp(x))


FEATURE_MAPS = {"elu": elu_feature_map}


def linear_attention(
    query: Tensor, key: Tensor, value: Tensor, *, allowed: Tensor | None = None, feature_map: str = "elu"
) -> Tensor:
    """Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j) over the allowed j, (B, H, Q, D) (arXiv 2006.16236, eq. 4).

    The queries are not scaled by D^-0.5, as in the paper. A query that sees no key gives zeros.
    """
    query, key, value = _double(query, key, value)
    features = FEATURE_MAPS[feature_map]
    weights = features(query) @ features(key).transpose(-1, -2)
    if allowed is not None:
        weights = weights * allowed
    total = weights.sum(-1, keepdim=True)
    return weights @ value / torch.where(total > 0, total, 1.0)


def _double(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All in float64, each key-value head repeated for the query heads that share it."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(group, dim=1) for x in (key, value))
    return query.double(), key, value
