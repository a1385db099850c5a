"""Divergences between a teacher's distribution p and a student's q, row by row, with gradients.

Shapes: N rows (positions, or texts), V classes, k largest classes. Distributions are given as log-probabilities; a
probability of 0 counts as e^-10000, so that no row is infinite and no gradient is NaN. Computed in float32 at least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compresskit.numerics.fusion import wide

FLOOR = -1e4
"""The least log-probability."""

NEAR_THE_END = 0.01
"""Where the weight of a mixture is nearer to 0 or 1 than this, float32 would round the difference away."""


def _finite(log_probabilities: Tensor) -> Tensor:
    return wide(log_probabilities).clamp(min=FLOOR)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p (log p - log q) of each row, (N,), for (N, V).

    With the teacher first it is the forward KL, which makes the student cover all that the teacher may say; with the
    student first the reverse KL, which makes it say only what the teacher may (Gu et al. 2024, "MiniLLM").
    """
    log_p, log_q = _finite(log_p), _finite(log_q)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _mixed(log_a: Tensor, log_b: Tensor, weight: float) -> Tensor:
    """log(weight · a + (1 - weight) · b), for 0 < weight < 1."""
    return torch.logaddexp(log_a + math.log(weight), log_b + math.log1p(-weight))


def skew_kl(log_p: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    """KL(p ‖ α p + (1 - α) q) of each row, (N,), for (N, V) (Ko et al. 2024, "DistiLLM", eq. 3).

    Bounded by -log α. 0 <= α < 1; with α = 0 it is ``kl``.
    """
    log_p, log_q = _finite(log_p), _finite(log_q)
    return kl(log_p, log_q if alpha == 0 else _mixed(log_p, log_q, alpha))


def generalized_jsd(log_p: Tensor, log_q: Tensor, beta: float, *, rescale: bool = True) -> Tensor:
    """JSD_β = β KL(p ‖ m) + (1 - β) KL(q ‖ m), m = β p + (1 - β) q, of each row, (N,), for (N, V).

    (Agarwal et al. 2024, "GKD", eq. 1.) As it stands it vanishes at both ends, like β KL(p ‖ q) and like
    (1 - β) KL(q ‖ p). With ``rescale`` it is divided by β (1 - β): then the limits are the forward KL at β = 0 and the
    reverse KL at β = 1, which are what those values give.
    """
    log_p, log_q = _finite(log_p), _finite(log_q)
    if beta in (0, 1):
        ends = kl(log_p, log_q) if beta == 0 else kl(log_q, log_p)
        return ends if rescale else torch.zeros_like(ends)
    kept = log_p.dtype
    if min(beta, 1 - beta) < NEAR_THE_END:
        log_p, log_q = log_p.double(), log_q.double()
    log_m = _mixed(log_p, log_q, beta)
    left, right = kl(log_p, log_m), kl(log_q, log_m)
    found = left / (1 - beta) + right / beta if rescale else beta * left + (1 - beta) * right
    return found.to(kept)


def sorted_distance(p: Tensor, q: Tensor) -> Tensor:
    """Σ_i |p_(i) - q_(i)| of each row, (N,), with both rows of probabilities (N, V), (N, W) sorted downwards.

    The shorter vocabulary is filled up with zeros. It is the Wasserstein distance between the two where every pair of
    different words is equally far apart and any word may stand for any: no order of the vocabularies matters
    (Boizard et al. 2024, "ULD", eq. 5).
    """
    sides = wide(p), wide(q)
    size = max(side.shape[-1] for side in sides)
    ordered = [
        torch.nn.functional.pad(side.sort(-1, descending=True).values, (0, size - side.shape[-1])) for side in sides
    ]
    return (ordered[0] - ordered[1]).abs().sum(-1)


def bucketed(log_p: Tensor, index: Tensor) -> Tensor:
    """Log-probabilities of the classes ``index`` (N, k), and last of all others together, (N, k + 1), for (N, V)."""
    rest = log_p.scatter(-1, index, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_p.gather(-1, index), rest], -1)


def mixture(log_ps: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """log Σ_i w_i p_i, (N, V), for distributions (N, V) with weights above 0 that sum to 1."""
    parts = [_finite(log_p) + math.log(weight) for log_p, weight in zip(log_ps, weights, strict=True)]
    return torch.stack(parts).logsumexp(0)
