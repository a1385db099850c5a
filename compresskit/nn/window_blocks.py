"""Window attention block by block: each block of queries gathers the keys that its window reaches.

Nothing of size Q × K is made, and the gathered keys of one pass stay below ``PASS`` numbers however long the sequence.
The same code is traced for ONNX, in one pass; it then branches on no length.

Shapes: B batch, H query heads, H' key-value heads, Q queries, K keys, D head dimension, N blocks of c queries, of which
n are in one pass, S keys that a block sees, G global tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compresskit.nn.attention_mask import Seen
from compresskit.nn.base import exporting
from compresskit.nn.softmax import attend

BLOCK = 64
"""Queries in a block: fastest of 32, 64, 128, 256 on a CPU for windows of 16 to 256."""

ALIGNED = 16
"""Keys that a block sees are a multiple of this, which torch's CPU kernel computes up to 15 % faster."""

PASS = 4_000_000
"""Numbers gathered at once: larger buffers are mapped anew by the system each time, which costs more than the sums."""


@dataclass(frozen=True)
class Window:
    """The two numbers of a window attention."""

    size: int
    global_tokens: int

    def reach(self, causal: bool) -> int:
        """Keys besides its own that a query may see."""
        return (self.size - 1) * (1 if causal else 2)


def cut(length: Any, block: int) -> tuple[int, Any]:
    """Size and number of the blocks that ``length`` is cut into; the last one may reach beyond the end.

    While traced the size is fixed, since a symbolic one would make every shape an unwieldy expression, and there is one
    block more: torch.export takes a number that is 1 for the example's length for a constant.
    """
    if isinstance(length, int):
        block = min(block, length)
        return block, -(-length // block)
    return block, (length + block - 1) // block + 1


def first_real(seen: Seen) -> Tensor | None:
    """(B, 1) position of the first real token of each row; None where nothing is padded."""
    if seen.dense is not None:
        return seen.dense.any(dim=(1, 2)).int().argmax(-1, keepdim=True)
    return None if seen.padding is None else seen.padding.int().argmax(-1, keepdim=True)


class Blocks:
    """The index arithmetic of one call, in Python integers or, while traced, in symbolic ones.

    A block sees S keys from ``start`` on: those that the window reaches from any of its queries, moved inwards at both
    ends of the sequence. A sequence shorter than S is seen whole, so that short ones cost no more.
    """

    queries: Any
    keys: Any

    def __init__(self, query: Tensor, key: Tensor, seen: Seen, window: Window) -> None:
        self.query, self.key, self.seen, self.window = query, key, seen, window
        self.batch, self.heads, self.queries, self.dim = query.shape
        self.kv_heads, self.keys = key.shape[1], key.shape[2]
        self.extra = window.global_tokens
        self.block, self.count = cut(self.queries, BLOCK)
        self.span = torch.sym_min(self._full_span(), self.keys)
        offset = self.keys - self.queries
        steps = torch.arange(self.count, device=query.device)[:, None] * self.block
        self.row = steps + torch.arange(self.block, device=query.device)  # (N, c) query numbers
        self.position = self.row + offset
        start = (steps + (offset - window.size + 1)).clamp(min=0).clamp(max=self.keys - self.span)
        self.column = start + torch.arange(self.span, device=query.device)  # (N, S) key positions
        self.first = first_real(seen)

    def _full_span(self) -> int:
        """Keys that a block sees where the sequence is long enough."""
        span = self.block + self.window.reach(self.seen.causal)
        return -(-(span + self.extra) // ALIGNED) * ALIGNED - self.extra

    def attend(self, value: Tensor, scaling: float | None, dropout: float) -> Tensor:
        """(B, Q, H, D)."""
        rows = [x.transpose(1, 2) for x in (self.query, self.key, value)]
        begin = self._first_key()
        if not isinstance(begin, int) or begin:
            rows[1:] = [x[:, begin:] for x in rows[1:]]
        if self.extra:
            rows[1:] = [
                torch.cat([self._globals(x), near], 1) for x, near in zip((self.key, value), rows[1:], strict=True)
            ]
        parts = [self._pass(rows, part, begin, scaling, dropout) for part in self._parts()]
        output = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))[:, : self.queries]
        if self.extra and not self.seen.causal:
            output = self._with_global_rows(output, value, scaling, dropout)
        return output

    def _first_key(self) -> Any:
        """Decoding needs only the end of the cache; elsewhere keys are gathered from all."""
        if not isinstance(self.queries, int):
            return 0
        begin = self.keys - self.queries - self.window.size + 1
        return torch.sym_max(torch.sym_min(begin, self.keys - self.span), 0)

    def _parts(self) -> list[slice]:
        if exporting():
            return [slice(None)]
        each = max(1, PASS // (self.batch * (self.span + self.extra) * self.kv_heads * self.dim))
        return [slice(at, at + each) for at in range(0, self.count, each)]

    def _pass(self, rows: list[Tensor], part: slice, begin: Any, scaling: float | None, dropout: float) -> Tensor:
        """The blocks of ``part``: rows of query, key and value, (B, ·, heads, D) -> (B, n·c, H, D)."""
        row, column = self.row[part].clamp(max=self.queries - 1), self.column[part] - begin
        blocks = self.batch * row.shape[0]
        if self.extra:
            ahead = torch.arange(self.extra, device=row.device).expand(row.shape[0], self.extra)
            column = torch.cat([ahead, column + self.extra], dim=1)
        query, key, value = (
            x.index_select(1, at.flatten()).reshape(blocks, at.shape[1], x.shape[2], self.dim).transpose(1, 2)
            for x, at in zip(rows, (row, column, column), strict=True)
        )
        output = attend(query, key, value, self._allowed(part), self._bias(part), scaling, dropout)
        return output.transpose(1, 2).reshape(self.batch, row.shape[0] * self.block, self.heads, self.dim)

    def _global_positions(self) -> Tensor:
        """(B or 1, G) positions of the global tokens; the last ones lie beyond a sequence that is shorter."""
        at = torch.arange(self.extra, device=self.query.device)[None, :]
        return at if self.first is None else self.first + at

    def _globals(self, x: Tensor) -> Tensor:
        """Keys or values of the global tokens, (B, G, H', D)."""
        at = self._global_positions().clamp(max=self.keys - 1)[:, None, :, None]
        return x.gather(2, at.expand(self.batch, x.shape[1], self.extra, self.dim)).transpose(1, 2)

    def _allowed(self, part: slice) -> Tensor:
        """(B·n, 1, c, G + S) bool."""
        row, column = self.position[part][:, :, None], self.column[part][:, None, :]
        near = (row - column).abs() < self.window.size
        if self.seen.causal:
            near = near & (column <= row)
        near = near[None]  # (1, n, c, S)
        real = self.seen.padding
        if real is not None:
            seen = real.index_select(1, column.flatten())
            near = near & seen.reshape(self.batch, column.shape[0], 1, self.span)
        if self.extra:
            at = self._global_positions()
            begin = at[:, :1, None, None]
            near = near & ((column < begin) | (column >= begin + self.extra))
            far = (at < self.keys)[:, None, None, :]
            if self.seen.causal:
                far = far & (at[:, None, None, :] <= row[None])
            if real is not None:
                far = far & real.gather(1, at.clamp(max=self.keys - 1))[:, None, None, :]
            near = torch.cat([self._expanded(far, row), self._expanded(near, row)], dim=-1)
        return self._expanded(near, row).reshape(self.batch * row.shape[0], 1, self.block, near.shape[-1])

    def _expanded(self, allowed: Tensor, row: Tensor) -> Tensor:
        return allowed.expand(self.batch, row.shape[0], self.block, allowed.shape[-1])

    def _bias(self, part: slice) -> Tensor | None:
        """(B·n, H, c, G + S): the parts of the bias that the blocks need."""
        bias = self.seen.bias
        if bias is None:
            return None
        row, column = self.row[part].clamp(max=self.queries - 1), self.column[part]
        near = bias[:, :, row[:, :, None], column[:, None, :]]
        near = near.expand(self.batch, self.heads, row.shape[0], self.block, self.span)
        if self.extra:
            at = self._global_positions().clamp(max=self.keys - 1)
            at = at[:, None, None, :].expand(self.batch, self.heads, self.queries, self.extra)
            near = torch.cat([self._whole(bias).gather(3, at)[:, :, row], near], dim=-1)
        return near.transpose(1, 2).reshape(self.batch * row.shape[0], self.heads, self.block, near.shape[-1])

    def _whole(self, bias: Tensor) -> Tensor:
        return bias.expand(self.batch, self.heads, self.queries, self.keys)

    def _with_global_rows(self, output: Tensor, value: Tensor, scaling: float | None, dropout: float) -> Tensor:
        """Put the rows of the global tokens, which see every key, into (B, Q, H, D)."""
        at = self._global_positions().clamp(max=self.keys - 1).expand(self.batch, self.extra)[:, None, :, None]
        pick = at.expand(self.batch, self.heads, self.extra, self.dim)
        bias = self.seen.bias
        if bias is not None:
            bias = self._whole(bias).gather(2, at.expand(self.batch, self.heads, self.extra, self.keys))
        allowed = None if self.seen.padding is None else self.seen.padding[:, None, None, :]
        seen = attend(self.query.gather(2, pick), self.key, value, allowed, bias, scaling, dropout)
        return output.scatter(1, pick.transpose(1, 2), seen.transpose(1, 2))
