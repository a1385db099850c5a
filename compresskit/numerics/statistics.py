"""Intervals and tests for benchmark figures, in numpy alone.

Samples of one process are alike, so processes are the outer level of a bootstrap in two levels (Davison and Hinkley,
Bootstrap Methods and their Application, 1997, section 3.8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
_CHUNK = 4_000_000

Floats = NDArray[np.float64]


def least_samples(quantile: float, level: float = 0.99) -> int:
    """Fewest samples whose maximum is above the true ``quantile`` with probability ``level``: 459 for p99 at 99 %.

    All n samples lie below the quantile with probability q**n; that must not exceed 1 - level.
    """
    return math.ceil(math.log(1 - level) / math.log(quantile))


def quantile(samples: ArrayLike, q: float) -> float:
    """The smallest sample that at least a share ``q`` of samples doesn't exceed; for q = 0.5 the median."""
    values = np.sort(np.asarray(samples, dtype=np.float64))
    if q == 0.5:
        return float(np.median(values))
    return float(values[max(0, math.ceil(q * len(values)) - 1)])


def quantile_interval(samples: ArrayLike, q: float, level: float = 0.95) -> tuple[float, float] | None:
    """Order statistics that enclose the true ``q`` quantile with at least ``level``; None with too few samples.

    The number of samples below the quantile is binomial (n, q), whatever the distribution.
    """
    values = np.sort(np.asarray(samples, dtype=np.float64))
    below = binomial_cdf(len(values), q)
    tail = (1 - level) / 2
    # P(sample number k from below, counted from 1, is above the quantile) = P(at most k - 1 below it).
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    if low < 1 or high > len(values):
        return None
    return float(values[low - 1]), float(values[high - 1])


def binomial_cdf(n: int, p: float) -> Floats:
    """P(X <= k) of a binomial (n, p) for k = 0 .. n."""
    k = np.arange(n + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1, dtype=np.float64)))])
    terms = logs[n] - logs[k] - logs[n - k] + k * math.log(p) + (n - k) * math.log1p(-p)
    return np.minimum(np.cumsum(np.exp(terms)), 1.0)


def midmean(values: ArrayLike, axis: int = -1) -> Floats:
    """Mean of the middle half: nearly as precise as the mean, and outliers don't move it.

    A quarter of the values, rounded down, is left out on either side.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=axis)
    size = ordered.shape[axis]
    kept = np.take(ordered, np.arange(size // 4, size - size // 4), axis=axis)
    return np.asarray(kept.mean(axis=axis))


def grouped_midmean(groups: Sequence[ArrayLike]) -> float:
    """The mean over groups (processes) of each group's midmean."""
    return float(np.mean([midmean(group) for group in groups]))


def hierarchical_bootstrap(groups: Sequence[ArrayLike], *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """``resamples`` draws of ``grouped_midmean``: processes are drawn again, then blocks within each.

    Deviations of R processes are scaled by sqrt(R / (R - 1)): drawing R of R shrinks their variance by (R - 1) / R,
    which for the two processes of a quick run would be half. With one process the draws know nothing of how processes
    differ.

    Args:
        groups: per process the values of its blocks; at least one each.
    """
    generator = np.random.default_rng(seed)
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    count = len(arrays)
    centres = np.array([midmean(array) for array in arrays])
    within = np.stack([_resampled(array, resamples, generator) for array in arrays]) - centres[:, None]
    drawn = generator.integers(0, count, size=(count, resamples))
    inner = within[drawn, generator.integers(0, resamples, size=(count, resamples))]
    spread = math.sqrt(count / (count - 1)) if count > 1 else 1.0
    outer = spread * (centres[drawn] - centres.mean())
    return np.asarray(centres.mean() + (outer + inner).mean(axis=0))


def _resampled(values: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """Midmeans of ``resamples`` draws of len(values) with replacement, in chunks that fit the cache."""
    size = len(values)
    step = max(1, _CHUNK // max(1, size))
    parts = [
        midmean(values[generator.integers(0, size, size=(min(step, resamples - start), size))])
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts)


def interval(draws: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap draws."""
    low, high = np.quantile(np.asarray(draws), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_p(draws: ArrayLike, null: float = 0.0) -> float:
    """Two-sided p of ``null`` from bootstrap draws; never 0, since only so many draws were made."""
    values = np.asarray(draws)
    below, above = int((values <= null).sum()), int((values >= null).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(values) + 1))


def paired_bootstrap(differences: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Draws of the mean of paired ``differences``, examples drawn with replacement."""
    values = np.asarray(differences, dtype=np.float64)
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(1, len(values)))
    parts = []
    for start in range(0, resamples, step):
        picks = generator.integers(0, len(values), size=(min(step, resamples - start), len(values)))
        parts.append(values[picks].mean(axis=1))
    return np.concatenate(parts)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down method: reject those at most alpha, and the family's error is alpha.

    Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    count = len(p_values)
    adjusted = [0.0] * count
    largest = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda number: p_values[number])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p that two classifiers err alike, from the numbers of examples that only one got right.

    McNemar, Note on the sampling error of the difference between correlated proportions, 1947; the binomial form.
    """
    total = only_first + only_second
    if total == 0:
        return 1.0
    tail = sum(math.comb(total, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**total)
