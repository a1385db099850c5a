"""Multi-instance target fusion (MiTF): a teacher's logits mixed with those of the bag that an instance belongs to.

Li, Yang, Li and Su, "MiDTD", ACM TOIS 40(4), 2022, section on MiTF, as in the authors' released code; the weights
other than the mean, and the space of probabilities, are ours.

Shapes: N instances, C classes, G bags.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor

Weights = Literal["mean", "confidence", "attention"]
Space = Literal["logit", "prob"]


def wide(tensor: Tensor) -> Tensor:
    """``tensor`` in float32 at least."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def group_numbers(groups: Tensor | Sequence[Hashable]) -> Tensor:
    """Keys of any kind as numbers 0 to G - 1, (N,) int64, in the order in which they first occur.

    Raises:
        ValueError: an empty key (None, or a text without a character): it would put strangers into one bag.
    """
    keys = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    known: dict[Hashable, int] = {}
    for row, key in enumerate(keys):
        if key is None or (isinstance(key, str) and not key.strip()):
            raise ValueError(f"the bag key of row {row} is empty")
        known.setdefault(key, len(known))
    return torch.tensor([known[key] for key in keys], dtype=torch.int64)


def fuse_targets(
    logits: Tensor,
    groups: Tensor | Sequence[Hashable] | None,
    rho: float = 0.5,
    weights: Weights = "mean",
    space: Space = "logit",
    *,
    labels: Tensor | None = None,
    tau: float = 1.0,
) -> Tensor:
    """z'_i = rho · zbar_g(i) + (1 - rho) · z_i, with zbar_g = Σ_j w_j z_j over the bag; (N, C).

    Args:
        logits: the teacher's, (N, C). A constant added to one row changes no softmax of the result.
        groups: bag keys, (N,); None: bags of one.
        rho: the paper's ρ, share of the bag, in [0, 1]. 0, and a bag of one, give the row back bit for bit.
        weights: ``mean`` (the paper); ``confidence``, w = softmax_j(-H_j / tau) with H the entropy in nats;
            ``attention``, w = softmax_j(z_j[y_j] - logsumexp(z_j)) by each row's own label.
        space: ``logit`` (the paper), or ``prob``: z' = log(rho · Σ w_j p_j + (1 - rho) p_i).
        labels: (N,) int64, for ``attention``.
        tau: temperature of ``confidence``.

    Raises:
        ValueError: for logits that are no matrix, keys of another number, an empty key, rho or tau out of range.
    """
    if logits.dim() != 2:
        raise ValueError(f"logits are (N, C), these are {tuple(logits.shape)}")
    if not 0 <= rho <= 1:
        raise ValueError(f"rho is a share in [0, 1], this is {rho}")
    if tau <= 0:
        raise ValueError(f"tau is positive, this is {tau}")
    if groups is None or rho == 0:
        return logits.clone()
    numbers = group_numbers(groups).to(logits.device)
    if len(numbers) != len(logits):
        raise ValueError(f"{len(numbers)} bag keys for {len(logits)} rows of logits")
    bags = int(numbers.max()) + 1 if len(numbers) else 0
    values = wide(logits)
    if space == "prob":
        values = values.softmax(-1)
    share = _within_bag(_scores(wide(logits), weights, labels, tau), numbers, bags)
    mean = values.new_zeros(bags, values.shape[1]).index_add_(0, numbers, values * share.unsqueeze(-1))
    mixed = rho * mean[numbers] + (1 - rho) * values
    if space == "prob":
        mixed = mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()
    alone = torch.bincount(numbers, minlength=bags)[numbers] == 1
    return torch.where(alone.unsqueeze(-1), logits, mixed.to(logits.dtype))


def _scores(logits: Tensor, weights: Weights, labels: Tensor | None, tau: float) -> Tensor:
    """Unnormalised log-weights of the rows, (N,)."""
    if weights == "mean":
        return logits.new_zeros(len(logits))
    logs = logits.log_softmax(-1)
    if weights == "confidence":
        return (logs.exp() * logs).sum(-1) / tau
    if labels is None:
        raise ValueError("attention weights need the labels of the rows")
    # Against the row's own logsumexp, so that a constant added to a row changes no weight.
    return logs.gather(1, labels.to(logs.device).unsqueeze(1)).squeeze(1)


def _within_bag(scores: Tensor, numbers: Tensor, bags: int) -> Tensor:
    """softmax of ``scores`` within each bag, (N,)."""
    highest = scores.new_full((bags,), -torch.inf).scatter_reduce_(0, numbers, scores, "amax")
    powers = (scores - highest[numbers]).exp()
    return powers / scores.new_zeros(bags).index_add_(0, numbers, powers)[numbers]
