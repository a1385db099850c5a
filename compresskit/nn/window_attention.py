"""Softmax attention inside a window, with global tokens, in time and memory linear in the length.

Query i sees key j where |i - j| < window, or where j is one of the first ``global_tokens`` real positions; without
causality those positions also see every key (Longformer, arXiv 2004.05150; causal: the sinks of StreamingLLM, arXiv
2309.17453). Queries are cut into blocks, each block gathers the keys that its window reaches, and one fused attention
runs over all blocks, so nothing of size Q × K is made.

The same code is traced for ONNX: it branches on no length then, and below one block it is plain dense attention.
Shapes: B batch, H query heads, H' key-value heads, Q queries, K keys, D head dimension, N blocks of c queries, S keys
that a block sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv

from compresskit.nn.attention_mask import Seen
from compresskit.nn.base import exporting

BLOCK = 64
"""Queries in a block: fastest of 32, 64, 128, 256 on a CPU for windows of 32 and 128."""

DENSE_BELOW = 1.5
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
    if seen.dense is not None or (not exporting() and _is_short(query, key, seen, narrow)):
        allowed = _dense_mask(query, key, seen, narrow)
        return attend(query, key, value, allowed, seen.bias, scaling, dropout).transpose(1, 2)
    return _Blocks(query, key, seen, narrow).attend(value, scaling, dropout)


@dataclass(frozen=True)
class Window:
    """The two numbers."""

    size: int
    global_tokens: int


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    bias: Tensor | None,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """Fused softmax attention, (B, H, Q, D); a query that sees nothing gives zeros.

    Args:
        allowed: broadcasts to (B, H, Q, K) bool. bias: likewise, added to the scores.
    """
    mask = allowed
    if bias is not None:
        lowest = torch.finfo(query.dtype).min
        mask = bias.to(query.dtype) if allowed is None else torch.where(allowed, bias.to(query.dtype), lowest)
    grouped = query.shape[1] != key.shape[1]
    # torch's CPU kernel takes grouped heads together with a mask; the other kernels and the exporter don't.
    native = grouped and query.device.type == "cpu" and not exporting()
    if grouped and not native:
        group = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, group), repeat_kv(value, group)
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=native
    )
    if bias is not None and allowed is not None:
        output = output * allowed.any(-1, keepdim=True)
    return output


def _is_short(query: Tensor, key: Tensor, seen: Seen, window: Window) -> bool:
    reach = (window.size - 1) * (1 if seen.causal else 2)
    return query.shape[2] > 1 and key.shape[2] <= DENSE_BELOW * (BLOCK + reach)


def _first_real(seen: Seen) -> Tensor | None:
    """(B, 1) position of the first real token of each row; None where nothing is padded."""
    if seen.dense is not None:
        return seen.dense.any(dim=(1, 2)).int().argmax(-1, keepdim=True)
    return None if seen.padding is None else seen.padding.int().argmax(-1, keepdim=True)


def _dense_mask(query: Tensor, key: Tensor, seen: Seen, window: Window) -> Tensor:
    """(B or 1, 1, Q, K) or with H heads: what is seen, narrowed to the window."""
    query_length, key_length = query.shape[2], key.shape[2]
    at = torch.arange(key_length, device=query.device)
    row = at[key_length - query_length :][None, :, None]
    if seen.dense is not None and query_length != key_length:
        # In a static cache the queries aren't the last positions: the last key that one sees is itself.
        last = key_length - 1 - seen.dense.flip(-1).int().argmax(-1)
        row = last[:, 0, :, None]
    first = _first_real(seen)
    begin = 0 if first is None else first[:, :, None]
    column = at[None, None, :]
    allowed = (row - column).abs() < window.size
    if window.global_tokens:
        is_global = (column >= begin) & (column < begin + window.global_tokens)
        allowed = allowed | is_global
        if not seen.causal:
            allowed = allowed | ((row >= begin) & (row < begin + window.global_tokens))
    if seen.causal:
        allowed = allowed & (column <= row)
    allowed = allowed[:, None]
    if seen.padding is not None:
        allowed = allowed & seen.padding[:, None, None, :]
    return allowed if seen.dense is None else allowed & seen.dense


class _Blocks:
    """The index arithmetic of one call, in Python integers or, while traced, in symbolic ones.

    Block n holds the queries n·c … n·c + c - 1 at positions ``offset`` more, and sees the keys from ``back`` before its
    first position to ``ahead`` after its last. With one block only, both are 0 unless keys of a cache go before.
    """

    def __init__(self, query: Tensor, key: Tensor, seen: Seen, window: Window) -> None:
        self.query, self.key, self.seen, self.window = query, key, seen, window
        self.batch, self.heads, self.queries, self.dim = query.shape
        self.kv_heads, self.keys = key.shape[1], key.shape[2]
        self.offset = self.keys - self.queries
        self.block = torch.sym_min(BLOCK, self.queries)
        self.count = (self.queries + self.block - 1) // self.block
        further = (self.count - 1) * self.block
        self.back = torch.sym_min(window.size - 1, self.offset + further)
        ahead = 0 if seen.causal else torch.sym_min(window.size - 1, further)
        steps = torch.arange(self.count, device=query.device)[:, None] * self.block
        self.row = steps + torch.arange(self.block, device=query.device)  # (N, c) query numbers
        span = torch.arange(self.block + self.back + ahead, device=query.device) - self.back
        self.column = steps + self.offset + span  # (N, S) key positions
        self.first = _first_real(seen)

    def attend(self, value: Tensor, scaling: float | None, dropout: float) -> Tensor:
        """(B, Q, H, D)."""
        rows = self.row.clamp(max=self.queries - 1).reshape(-1)
        query = self._by_block(self.query.transpose(1, 2).index_select(1, rows), self.block)
        output = attend(
            query, self._gather(self.key), self._gather(value), self._allowed(), self._bias(), scaling, dropout
        )
        output = output.transpose(1, 2).reshape(self.batch, self.count * self.block, self.heads, self.dim)
        output = output[:, : self.queries]
        if self.window.global_tokens and not self.seen.causal:
            output = self._with_global_rows(output, value, scaling, dropout)
        return output

    def _by_block(self, x: Tensor, length: int) -> Tensor:
        """(B, N·length, heads, D) -> (B·N, heads, length, D)."""
        return x.reshape(self.batch * self.count, length, x.shape[2], self.dim).transpose(1, 2)

    def _global_positions(self) -> Tensor:
        """(B or 1, G) positions of the global tokens; the last ones lie beyond a sequence that is shorter."""
        at = torch.arange(self.window.global_tokens, device=self.query.device)[None, :]
        return at if self.first is None else self.first + at

    def _gather(self, x: Tensor) -> Tensor:
        """Keys or values of every block, the global ones first: (B, H', K, D) -> (B·N, H', G + S, D)."""
        extra = self.window.global_tokens
        start = self.offset - self.back
        near = x if self.queries is self.keys else x[:, :, torch.sym_max(start, 0) :]
        column = (self.column - torch.sym_max(start, 0)).clamp(0, near.shape[2] - 1)
        if extra:
            at = self._global_positions().clamp(max=self.keys - 1)
            at = at[:, None, :, None].expand(self.batch, self.kv_heads, extra, self.dim)
            near = torch.cat([x.gather(2, at), near], dim=2)
            ahead = torch.arange(extra, device=x.device).expand(self.count, extra)
            column = torch.cat([ahead, column + extra], dim=1)
        near = near.transpose(1, 2)
        length = near.shape[1]
        each = torch.arange(self.batch, device=x.device)[:, None] * length + column.reshape(1, -1)
        flat = near.reshape(self.batch * length, self.kv_heads * self.dim).index_select(0, each.reshape(-1))
        return self._by_block(
            flat.reshape(self.batch, self.count * column.shape[1], self.kv_heads, self.dim), column.shape[1]
        )

    def _allowed(self) -> Tensor:
        """(B·N, 1, c, G + S) bool."""
        row, column = (self.row + self.offset)[:, :, None], self.column[:, None, :]
        near = (row - column).abs() < self.window.size
        if self.seen.causal:
            near = near & (column <= row)
        near = (near & (column >= 0) & (column < self.keys))[None]  # (1, N, c, S)
        real = self.seen.padding
        if real is not None:
            flat = self.column.clamp(0, self.keys - 1).reshape(-1)
            near = near & real.index_select(1, flat).reshape(self.batch, self.count, 1, -1)
        if self.window.global_tokens:
            at = self._global_positions()
            begin = at[:, :1, None, None]
            near = near & ((column < begin) | (column >= begin + self.window.global_tokens))
            far = (at < self.keys)[:, None, None, :]
            if self.seen.causal:
                far = far & (at[:, None, None, :] <= row[None])
            if real is not None:
                far = far & real.gather(1, at.clamp(max=self.keys - 1))[:, None, None, :]
            shape = (self.batch, self.count, self.block, self.window.global_tokens)
            near = near.expand(self.batch, -1, -1, -1)
            near = torch.cat([far.expand(shape), near], dim=-1)
        near = near.expand(self.batch, self.count, self.block, near.shape[-1])
        return near.reshape(self.batch * self.count, 1, self.block, near.shape[-1])

    def _bias(self) -> Tensor | None:
        """(B·N, H, c, G + S): the parts of the bias that the blocks need."""
        bias = self.seen.bias
        if bias is None:
            return None
        row = self.row.clamp(max=self.queries - 1)
        parts = [bias[:, :, row[:, :, None], self.column.clamp(0, self.keys - 1)[:, None, :]]]
        if self.window.global_tokens:
            at = self._global_positions().clamp(max=self.keys - 1)
            whole = bias.expand(self.batch, self.heads, self.queries, self.keys)
            at = at[:, None, None, :].expand(self.batch, self.heads, self.queries, -1)
            parts.insert(0, whole.gather(3, at)[:, :, row])
            parts[1] = parts[1].expand(self.batch, self.heads, -1, -1, -1)
        near = torch.cat(parts, dim=-1).expand(self.batch, self.heads, -1, -1, -1).transpose(1, 2)
        return near.reshape(self.batch * self.count, self.heads, self.block, near.shape[-1])

    def _with_global_rows(self, output: Tensor, value: Tensor, scaling: float | None, dropout: float) -> Tensor:
        """Put the rows of the global tokens, which see every key, into (B, Q, H, D)."""
        at = self._global_positions().clamp(max=self.keys - 1).expand(self.batch, -1)
        pick = at[:, None, :, None].expand(self.batch, self.heads, self.window.global_tokens, self.dim)
        bias = self.seen.bias
        if bias is not None:
            whole = bias.expand(self.batch, self.heads, self.queries, self.keys)
            bias = whole.gather(2, at[:, None, :, None].expand(self.batch, self.heads, -1, self.keys))
        allowed = None if self.seen.padding is None else self.seen.padding[:, None, None, :]
        rows = attend(self.query.gather(2, pick), self.key, value, allowed, bias, scaling, dropout).transpose(1, 2)
        return output.scatter(1, pick.transpose(1, 2), rows)
