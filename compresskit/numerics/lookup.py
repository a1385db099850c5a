"""Weights as codes into a table of levels: k-means codebooks, NormalFloat, signs and three values.

Shapes: O rows, I columns, G groups of g columns, K levels. w = level[code], times a scale where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compresskit.numerics.grids import grouped
from compresskit.numerics.rtn import stored, usable

KMEANS_STEPS = 25
_POINTS = 2**20


@dataclass(frozen=True)
class Lookup:
    """A matrix in codes.

    Args:
        codes: (O, I) uint8, 0 … K - 1.
        levels: (S, K): each of S equal slices of rows has its own.
        scale: (O, G) or None: 1.
    """

    codes: Tensor
    levels: Tensor
    scale: Tensor | None

    def values(self) -> Tensor:
        """What the codes stand for, (O, I) float32."""
        found = look_up(self.codes.long(), self.levels)
        if self.scale is None:
            return found
        return (grouped(found, found.shape[1] // self.scale.shape[1]) * self.scale.float()[..., None]).flatten(1)


def look_up(codes: Tensor, levels: Tensor) -> Tensor:
    """Float32 levels of int64 ``codes`` (O, I), rows in S slices with ``levels`` (S, K)."""
    slices, count = levels.shape
    offset = torch.arange(slices, device=codes.device) * count
    flat = codes.reshape(slices, -1) + offset[:, None]
    return levels.float().reshape(-1)[flat].reshape(codes.shape)


def nearest_level(values: Tensor, levels: Tensor) -> Tensor:
    """Index of the level nearest to each of ``values``; ``levels`` (K,) ascending. Ties go to the lower one."""
    edges = (levels[1:] + levels[:-1]) / 2
    return torch.bucketize(values.contiguous(), edges)


def normal_float(bits: int = 4) -> Tensor:
    """The 2^b levels of NormalFloat in -1 … 1, (K,) float32: quantiles of a normal distribution, and an exact 0.

    Dettmers et al., QLoRA, 2023 (arXiv 2305.14314), §3: 2^(b-1) quantiles for the negative half, one more for the
    positive; both share 0.
    """
    half = 2 ** (bits - 1)
    # The outermost quantile that the source takes: the mean of 1 - 1/(2·15) and 1 - 1/(2·16) for 4 bits.
    outer = 0.5 * ((1 - 1 / (4 * half - 2)) + (1 - 1 / (4 * half)))
    positive = _quantile(torch.linspace(0.5, outer, half + 1, dtype=torch.float64))
    negative = -_quantile(torch.linspace(0.5, outer, half, dtype=torch.float64))
    levels = torch.cat((negative[1:].flip(0), positive))
    return (levels / positive.max()).float()


def _quantile(probability: Tensor) -> Tensor:
    return torch.special.ndtri(probability)


def by_absmax(weight: Tensor, levels: Tensor, group: int, scale_dtype: torch.dtype = torch.float32) -> Lookup:
    """Nearest ``levels`` (K,) in -1 … 1 of each group divided by its largest |w|; a group of zeros gets scale 1."""
    parts = grouped(weight.detach().float().contiguous(), group)
    scale = stored(usable(parts.abs().amax(-1, keepdim=True)), scale_dtype)
    codes = nearest_level(parts / scale, levels)
    return Lookup(codes.reshape(weight.shape).to(torch.uint8), levels[None], scale.squeeze(-1).to(scale_dtype))


def double_quantized(scale: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scales (O, G) > 0 in 8 bits: codes uint8 (O, G), and for each ``block`` of them, row by row, step and offset.

    Rounded to nearest between the smallest and the largest of the block, so that a scale never becomes 0; steps and
    offsets are (ceil(O G / block),) float32.
    """
    flat = scale.float().reshape(-1)
    short = -len(flat) % block
    blocks = torch.cat((flat, flat[-1:].expand(short))).reshape(-1, block)
    offset = blocks.amin(1)
    step = usable((blocks.amax(1) - offset) / 255)
    codes = torch.round((blocks - offset[:, None]) / step[:, None]).clamp(0, 255)
    return codes.reshape(-1)[: len(flat)].to(torch.uint8).reshape(scale.shape), step, offset


def scales_of(codes: Tensor, step: Tensor, offset: Tensor, block: int) -> Tensor:
    """The inverse of ``double_quantized``, float32."""
    count = codes.numel()
    wide = codes.reshape(-1).float()
    return (wide * step.repeat_interleave(block)[:count] + offset.repeat_interleave(block)[:count]).reshape(codes.shape)


def binary(weight: Tensor, group: int | None = None, scale_dtype: torch.dtype = torch.float32) -> Lookup:
    """α sign(w) with α = mean |w| of each group, which minimises the squared error; sign(0) counts as +.

    Rastegari et al., XNOR-Net, 2016 (arXiv 1603.05279), eq. 6.
    """
    return of_signs(*two_signs(grouped(weight.detach().float().contiguous(), group)), 2, scale_dtype)


def ternary(
    weight: Tensor, group: int | None = None, threshold: float = 0.7, scale_dtype: torch.dtype = torch.float32
) -> Lookup:
    """α {-1, 0, 1}: 0 where |w| <= Δ = ``threshold`` mean |w| of its group, α the mean of |w| above Δ.

    Li et al., Ternary Weight Networks, 2016 (arXiv 1605.04711), eq. 6 and 8.
    """
    parts = grouped(weight.detach().float().contiguous(), group)
    return of_signs(*three_signs(parts, threshold), 3, scale_dtype)


def of_signs(signs: Tensor, scale: Tensor, levels: int, scale_dtype: torch.dtype = torch.float32) -> Lookup:
    """A matrix of ``signs`` (O, G, g), 1 and -1 and for three ``levels`` 0, times ``scale`` (O, G, 1)."""
    table = [-1.0, 1.0] if levels == 2 else [-1.0, 0.0, 1.0, 0.0]
    codes = (signs.flatten(1) + 1) / (2 if levels == 2 else 1)
    return Lookup(codes.to(torch.uint8), torch.tensor([table], device=signs.device), scale.squeeze(-1).to(scale_dtype))


def two_signs(parts: Tensor, curvature: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Signs of ``parts`` (O, G, g) and the scale of each group (O, G, 1): mean |w|, weighted by ``curvature``.

    With the diagonal d of the loss's Hessian it is α = Σ d|w| / Σ d, which moves the loss least (Hou, Yao and Kwok,
    Loss-aware Binarization, ICLR 2017, arXiv 1611.01600, proposition 3.1).
    """
    signs = torch.where(parts >= 0, 1.0, -1.0)
    return signs, _mean_size(parts, torch.ones_like(parts) if curvature is None else curvature)


def three_signs(
    parts: Tensor, threshold: float = 0.7, curvature: Tensor | None = None, rounds: int = 5
) -> tuple[Tensor, Tensor]:
    """-1, 0 or 1 for each of ``parts`` (O, G, g), and the scale of each group (O, G, 1).

    0 up to ``threshold`` times the mean size, and the mean size of the others. With a ``curvature`` that is where
    ``rounds`` of two alternating steps begin: α = Σ d|w| / Σ d over the kept, and kept is what lies above α / 2 (Hou
    and Kwok, Loss-aware Weight Quantization, ICLR 2018, arXiv 1802.08635, section 3.1).
    """
    size = parts.abs()
    kept = size > threshold * size.mean(-1, keepdim=True)
    if curvature is None:
        return parts.sign() * kept, _mean_size(parts, kept.float())
    scale = _mean_size(parts, curvature * kept)
    for _ in range(rounds):
        kept = size > scale / 2
        scale = _mean_size(parts, curvature * kept)
    return parts.sign() * kept, scale


def _mean_size(parts: Tensor, share: Tensor) -> Tensor:
    """Σ share |w| / Σ share of each group, 0 where all shares are."""
    total = share.sum(-1, keepdim=True)
    return (share * parts.abs()).sum(-1, keepdim=True) / torch.where(total > 0, total, 1.0)


def codebook(weight: Tensor, bits: int, slices: int = 1, steps: int = KMEANS_STEPS) -> Lookup:
    """A codebook of 2^b levels for each of ``slices`` equal slices of rows, by k-means in one dimension.

    Lloyd's iteration from the quantiles; ascending levels make the nearest one a search. Where the slice has no more
    than 2^b different values it is exact. Han et al., Deep Compression, 2016 (arXiv 1510.00149), §3.
    """
    wide = weight.detach().float().reshape(slices, -1)
    codes, levels = zip(*(_kmeans(values, 2**bits, steps) for values in wide), strict=True)
    return Lookup(torch.stack(codes).reshape(weight.shape).to(torch.uint8), torch.stack(levels), None)


def _kmeans(values: Tensor, count: int, steps: int) -> tuple[Tensor, Tensor]:
    """Codes of ``values`` (N,) and ``count`` levels, ascending."""
    ordered, _ = values.sort()
    distinct = torch.unique_consecutive(ordered)
    if len(distinct) <= count:
        levels = torch.cat((distinct, distinct[-1:].expand(count - len(distinct))))
        return torch.searchsorted(distinct, values), levels
    # Sums over sorted values make a step O(K log N): no weight is looked at twice.
    running = torch.cat((ordered.new_zeros(1, dtype=torch.float64), ordered.double().cumsum(0)))
    total = len(ordered)
    # Between equal shares of the weights and equal distances: the middle is served, and so are the outliers.
    shares = ((torch.arange(count, device=values.device) + 0.5) / count * total).long()
    even = ordered[0] + (ordered[-1] - ordered[0]) * torch.linspace(0, 1, count, device=values.device)
    levels = (0.5 * (ordered[shares] + even)).sort().values
    for _ in range(steps):
        bounds = torch.searchsorted(ordered, ((levels[1:] + levels[:-1]) / 2).contiguous(), right=True)
        ends = torch.cat((bounds.new_zeros(1), bounds, bounds.new_full((1,), total)))
        counts = ends[1:] - ends[:-1]
        means = (running[ends[1:]] - running[ends[:-1]]) / counts.clamp(min=1)
        moved = torch.where(counts > 0, means.float(), levels).sort().values
        if torch.equal(moved, levels):
            break
        levels = moved
    return nearest_level(values, levels), levels


def product_codes(
    table: Tensor, parts: int, bits: int, generator: torch.Generator, steps: int = KMEANS_STEPS
) -> tuple[Tensor, Tensor]:
    """Product quantization of ``table`` (V, D): codes (V, P) uint8 and codebooks (P, 2^b, D / P) float32.

    Each of ``parts`` slices of columns gets 2^b centroids by k-means. Jégou et al. 2011 (TPAMI 33-1).
    """
    pieces = table.detach().float().reshape(table.shape[0], parts, -1)
    codes, books = [], []
    for part in range(parts):
        code, book = _cluster(pieces[:, part].contiguous(), 2**bits, generator, steps)
        codes.append(code)
        books.append(book)
    return torch.stack(codes, 1).to(torch.uint8), torch.stack(books)


def _cluster(rows: Tensor, count: int, generator: torch.Generator, steps: int) -> tuple[Tensor, Tensor]:
    """k-means of ``rows`` (N, d): codes (N,), centroids (K, d); exact where there are no more than K rows."""
    if rows.shape[0] <= count:
        book = rows.new_zeros(count, rows.shape[1])
        book[: rows.shape[0]] = rows
        return torch.arange(rows.shape[0], device=rows.device), book
    chosen = torch.randperm(rows.shape[0], generator=generator)[:count].to(rows.device)
    book = rows[chosen].clone()
    codes = _closest(rows, book)
    for _ in range(steps):
        counts = torch.bincount(codes, minlength=count)
        sums = torch.zeros_like(book).index_add_(0, codes, rows)
        book = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], book)
        empty = torch.nonzero(counts == 0).reshape(-1)
        if len(empty):
            # Centroids that nothing is closest to start again at the rows that lie furthest from theirs.
            far = (rows - book[codes]).square().sum(1).topk(len(empty)).indices
            book[empty] = rows[far]
        moved = _closest(rows, book)
        if torch.equal(moved, codes):
            break
        codes = moved
    return codes, book


def _closest(rows: Tensor, book: Tensor) -> Tensor:
    found = []
    norms = book.square().sum(1) / 2
    for part in rows.split(max(1, _POINTS // len(book))):
        found.append((part @ book.T - norms).argmax(1))
    return torch.cat(found)
