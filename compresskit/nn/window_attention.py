"""Softmax attention inside a window, with global tokens, in time and memory linear in the length.

Query i sees key j where |i - j| < window, or where j is one of the first ``global_tokens`` real positions; without
causality those positions also see every key (Longformer, arXiv 2004.05150; causal: the sinks of StreamingLLM, arXiv
2309.17453). Long sequences are computed block by block (``window_blocks``), short ones under one dense mask.

Shapes: B batch, H query heads, H' key-value heads, Q queries, K keys, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compresskit.nn.attention_mask import Seen
from compresskit.nn.base import exporting
from compresskit.nn.softmax import attend
from compresskit.nn.window_blocks import BLOCK, Blocks, Window, first_real

DENSE_BELOW = 2.0
"""Up to so many times the keys that a block sees, one masked dense attention is faster (measured on a CPU)."""


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Seen,
    *,
    window: int,
    global_tokens: int = 0,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention inside the window.

    Args:
        query: (B, H, Q, D), the last Q of the K positions.
        key, value: (B, H', K, D).
        seen: what the model's own mask lets through; the window narrows it.
        window: see the module; the query itself counts, so 1 leaves only the query and the global tokens.
        global_tokens: counted from the first real position of each row.
        scaling: of the scores, D^-0.5 by default. dropout: probability.

    Returns:
        (B, Q, H, D). Rows of padding are finite and mean nothing.
    """
    narrow = Window(window, global_tokens)
    if seen.dense is not None or _is_short(query, key, seen, narrow):
        allowed = _dense_mask(query, key, seen, narrow)
        return attend(query, key, value, allowed, seen.bias, scaling, dropout).transpose(1, 2)
    return Blocks(query, key, seen, narrow).attend(value, scaling, dropout)


def _is_short(query: Tensor, key: Tensor, seen: Seen, window: Window) -> bool:
    if exporting() or query.shape[2] == 1:
        return False
    return key.shape[2] <= DENSE_BELOW * (BLOCK + window.reach(seen.causal))


def _dense_mask(query: Tensor, key: Tensor, seen: Seen, window: Window) -> Tensor:
    """(B or 1, 1, Q, K) or with H heads: what is seen, narrowed to the window."""
    query_length, key_length = query.shape[2], key.shape[2]
    at = torch.arange(key_length, device=query.device)
    row = at[key_length - query_length :][None, :, None]
    if seen.dense is not None and query_length != key_length:
        # In a static cache the queries aren't the last positions: the last key that one sees is itself.
        last = key_length - 1 - seen.dense.flip(-1).int().argmax(-1)
        row = last[:, 0, :, None]
    first = first_real(seen)
    begin = 0 if first is None else first[:, :, None]
    column = at[None, None, :]
    allowed = (row - column).abs() < window.size
    if window.global_tokens:
        allowed = allowed | ((column >= begin) & (column < begin + window.global_tokens))
        if not seen.causal:
            allowed = allowed | ((row >= begin) & (row < begin + window.global_tokens))
    if seen.causal:
        allowed = allowed & (column <= row)
    allowed = allowed[:, None]
    if seen.padding is not None:
        allowed = allowed & seen.padding[:, None, None, :]
    return allowed if seen.dense is None else allowed & seen.dense
