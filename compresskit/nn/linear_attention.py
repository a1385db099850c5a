"""Linear attention: a feature map in place of the softmax's exponential, and the sums taken in another order.

Transformers are RNNs, Katharopoulos et al. 2020, arXiv 2006.16236. Without causality it is two products, O(K D²). With
causality the queries are cut into chunks: inside a chunk the masked product, across chunks the running sum of
φ(k) vᵀ. Sums are in float32 whatever the model's type. Queries are not scaled by D^-0.5, as in the paper.

Shapes: B batch, H' key-value heads, G query heads to each, Q queries, K keys, D head dimension, N chunks of c queries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskit.nn.attention_mask import Seen
from compresskit.nn.window_blocks import cut

CHUNK = 64
"""Queries in a causal chunk: as fast as 32 on a CPU, faster than 128."""

FEW_QUERIES = 4
"""Up to so many queries (decoding with a cache), weights for each key are cheaper than the sum of φ(k) vᵀ."""

_FLOOR = 1e-30


def linear_attention(query: Tensor, key: Tensor, value: Tensor, seen: Seen, *, feature_map: str = "elu") -> Tensor:
    """Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j) over the keys that i sees.

    Args:
        query: (B, H, Q, D), the last Q of the K positions.
        key, value: (B, H', K, D).
        seen: what the model's mask lets through. One with a row per query costs O(Q K), and a bias on top of it
            multiplies the weights by its exponential, as it does in softmax.
        feature_map: ``elu``: φ(x) = elu(x) + 1.

    Returns:
        (B, Q, H, D) in the type of ``query``; a query that sees nothing gives zeros.
    """
    batch, heads, queries, dim = query.shape
    kv_heads = key.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    features = FEATURE_MAPS[feature_map]
    phi_query = features(query.to(wide)).reshape(batch, kv_heads, heads // kv_heads, queries, dim)
    phi_key = features(key.to(wide))
    if seen.padding is not None:
        phi_key = phi_key * seen.padding[:, None, :, None].to(wide)
    # A column of ones beside the values sums the weights.
    ones = torch.ones_like(value[..., :1], dtype=wide)
    value = torch.cat([value.to(wide), ones], dim=-1)
    few = isinstance(queries, int) and queries <= FEW_QUERIES
    if seen.dense is not None or seen.bias is not None or (few and seen.causal):
        sums = _by_weights(phi_query, phi_key, value, seen)
    elif seen.causal:
        sums = _by_chunks(phi_query, phi_key, value)
    else:
        sums = phi_query @ (phi_key.transpose(-1, -2) @ value)[:, :, None]
    output = sums[..., :-1] / sums[..., -1:].clamp(min=_FLOOR)
    return output.reshape(batch, heads, queries, dim).transpose(1, 2).to(query.dtype)


def _elu(x: Tensor) -> Tensor:
    return F.elu(x) + 1


FEATURE_MAPS = {"elu": _elu}


def _by_weights(query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> Tensor:
    """The weight of every key for every query, (B, H', G, Q, D + 1)."""
    batch, kv_heads, group, queries, _ = query.shape
    keys = key.shape[2]
    weights = query @ key.transpose(-1, -2)[:, :, None]
    if seen.causal:
        at = torch.arange(keys, device=query.device)
        weights = weights * (at <= at[keys - queries :, None])
    for factor in (None if seen.bias is None else seen.bias.to(weights.dtype).exp(), seen.dense):
        if factor is not None:
            factor = factor.expand(batch, kv_heads * group, queries, keys)
            weights = weights * factor.reshape(batch, kv_heads, group, queries, keys)
    return weights @ value[:, :, None]


def _by_chunks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal sums, (B, H', G, Q, D + 1), in O(Q c D + Q D² / c)."""
    batch, kv_heads, group, queries, dim = query.shape
    before = key.shape[2] - queries
    chunk, count = cut(queries, CHUNK)
    at = torch.arange(count * chunk, device=query.device)
    pick = at.clamp(max=queries - 1)
    shape = (batch, kv_heads, count, chunk)
    own = key[:, :, before:].index_select(2, pick) * (at < queries)[:, None].to(key.dtype)
    own = own.reshape(*shape, dim)
    own_value = value[:, :, before:].index_select(2, pick).reshape(*shape, dim + 1)
    query = query.index_select(3, pick).reshape(batch, kv_heads, group, count, chunk, dim)
    states = own.transpose(-1, -2) @ own_value  # (B, H', N, D, D + 1)
    # A row of zeros before the past: ONNX Runtime leaves a product over no rows uninitialised.
    past_key, past_value = (F.pad(x[:, :, :before], (0, 0, 1, 0)) for x in (key, value))
    past = past_key.transpose(-1, -2) @ past_value
    states = torch.cat([past[:, :, None], states], dim=2).cumsum(2)[:, :, :count]
    weights = (query @ own.transpose(-1, -2)[:, :, None]).tril()
    sums = weights @ own_value[:, :, None] + query @ states[:, :, None]
    return sums.reshape(batch, kv_heads, group, count * chunk, dim + 1)[:, :, :, :queries]
