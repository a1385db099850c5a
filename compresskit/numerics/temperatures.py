"""Dynamic temperature regulation (DTR), and the other rules by which a temperature is chosen for each instance.

DTR is that of Li, Yang, Li and Su, "MiDTD", ACM TOIS 40(4), 2022. ``band_temperature`` is ours: it can harden a soft
teacher as well as soften a sharp one.

Shapes: N instances, C classes. Entropies are in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compresskit.numerics.fusion import wide

LOWEST = 1e-3
"""No temperature is below this; a negative mu that would ask for less is refused."""


def entropy(logits: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """H(softmax(z / T)) of each row, (N,), in nats; ``temperature`` a number or (N,)."""
    values = wide(logits)
    scale = temperature.to(values).unsqueeze(-1) if isinstance(temperature, Tensor) else temperature
    logs = (values / scale).log_softmax(-1)
    # A probability of 0 adds nothing, whatever its logarithm.
    return -torch.where(logs > -torch.inf, logs.exp() * logs, torch.zeros_like(logs)).sum(-1)


def automatic_k(logits: Tensor, mask: Tensor | None = None, *, normalise: bool = False) -> float:
    """The paper's k by the teacher's own scale: ln 2 / median of H, so that half the rows get more than half of mu.

    Args:
        logits: fused targets, (N, C).
        mask: (N,) bool, rows that count (no padding).
        normalise: H / ln C in place of H.
    """
    values = entropy(logits)
    if normalise:
        values = values / math.log(logits.shape[-1])
    if mask is not None:
        values = values[mask]
    return math.log(2) / max(float(values.median()), 1e-6)


def temperatures(
    logits: Tensor,
    mu_teacher: float = 0.7,
    mu_student: float = 0.0,
    k: float | str = "auto",
    *,
    normalise: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """T = 1 + mu · exp(-k · H) for the teacher and for the student, (N,) each (DTR).

    Args:
        logits: fused targets z', (N, C); H is the entropy of their softmax.
        mu_teacher: the paper's mu1; > -1.
        mu_student: the paper's mu2; > -1; negative sharpens the student's side, 0 leaves it at T = 1.
        k: the paper's k, how fast the effect falls with H; ``auto``: see ``automatic_k``.
        normalise: H / ln C in place of H, so that one k serves any number of classes.
        mask: (N,) bool, the rows that ``auto`` looks at.

    Raises:
        ValueError: a mu that would make a temperature zero or negative, or a negative k.
    """
    for name, value in (("mu_teacher", mu_teacher), ("mu_student", mu_student)):
        if 1 + value < LOWEST:
            raise ValueError(f"{name} = {value} makes a temperature that isn't positive; it must be above -1")
    rate = automatic_k(logits, mask, normalise=normalise) if isinstance(k, str) else float(k)
    if rate < 0:
        raise ValueError(f"k is not negative, this is {rate}")
    values = entropy(logits)
    if normalise:
        values = values / math.log(logits.shape[-1])
    effect = (-rate * values).exp()
    return 1 + mu_teacher * effect, 1 + mu_student * effect


def band_temperature(
    logits: Tensor, low: float, high: float, lowest: float = 0.05, highest: float = 20.0, steps: int = 40
) -> tuple[Tensor, Tensor]:
    """The temperature nearest to 1 (in entropy) with H(softmax(z / T)) / ln C in [low, high]; and which were capped.

    By bisection: dH/dT = Var_p(z) / T³ is never negative. Rows of equal logits keep T = 1.

    Returns:
        (N,) temperatures in [lowest, highest], and (N,) bool: the band is out of reach for this row.

    Raises:
        ValueError: for a band that isn't 0 <= low <= high <= 1.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(f"the band is 0 <= low <= high <= 1, this is {low} to {high}")
    values = wide(logits).double()
    most = math.log(values.shape[-1]) if values.shape[-1] > 1 else 1.0
    start = entropy(values) / most
    constant = values.amax(-1) == values.amin(-1)
    inside = (start >= low - 1e-9) & (start <= high + 1e-9)
    wanted = start.clamp(low, high)
    below, above = (torch.full_like(start, bound) for bound in (math.log(lowest), math.log(highest)))
    for _ in range(steps):
        middle = (below + above) / 2
        short = entropy(values, middle.exp()) / most < wanted
        below, above = torch.where(short, middle, below), torch.where(short, above, middle)
    found = ((below + above) / 2).exp()
    keep = inside | constant
    found = torch.where(keep, torch.ones_like(found), found)
    reached = entropy(values, found) / most
    capped = ~keep & ((reached < low - 1e-4) | (reached > high + 1e-4))
    return found.to(wide(logits).dtype), capped


def standardized_temperature(logits: Tensor, tau: float = 1.0) -> Tensor:
    """T = tau · std(z) of each row, (N,): logit standardisation (Sun et al. 2024, arXiv 2403.01427)."""
    deviation = wide(logits).std(-1, correction=0)
    return tau * torch.where(deviation > 0, deviation, torch.ones_like(deviation))


def dtkd_temperatures(teacher: Tensor, student: Tensor, base: float = 1.0) -> tuple[Tensor, Tensor]:
    """T_t = 2x/(x+y) · T0 and T_s = 2y/(x+y) · T0 with x, y the logsumexp of the centred logits, (N,) each.

    Wei and Bai 2024 (DTKD). Rows are centred first: logsumexp of centred logits is at least ln C, so that the ratio is
    positive and no constant shift of a row changes it.
    """
    x, y = ((wide(z) - wide(z).mean(-1, keepdim=True)).logsumexp(-1) for z in (teacher, student.detach()))
    return 2 * x / (x + y) * base, 2 * y / (x + y) * base


def entropy_spread(logits: Tensor, temperature: Tensor | float) -> dict[str, float]:
    """5th, 50th and 95th percentile of H(softmax(z / T)) over the rows, and the distance p95 - p5, in nats."""
    values = entropy(logits, temperature).double()
    marks = torch.quantile(values, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    return {"p5": marks[0], "p50": marks[1], "p95": marks[2], "spread": marks[2] - marks[0]}
