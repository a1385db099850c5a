"""Scores of relation extraction, all from the probabilities of sentences.

Ranking is of (bag, relation) as in the held-out evaluation of Mintz et al. 2009, not of one sentence a bag.

Shapes: N sentences, C relations (0: none), G bags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RANKS = (100, 200, 300)


@dataclass(frozen=True)
class Ranking:
    """Candidates by falling score: whether each is true, (G · (C - 1),) bool."""

    right: np.ndarray

    @property
    def average_precision(self) -> float:
        """Area under the precision-recall curve: mean over true candidates of the precision at their rank."""
        hits = np.flatnonzero(self.right)
        return float(np.mean(np.arange(1, len(hits) + 1) / (hits + 1))) if len(hits) else 0.0

    def precision_at(self, rank: int) -> float:
        """Share of true ones among the first ``rank``."""
        return float(self.right[:rank].mean()) if len(self.right) else 0.0

    def curve(self, points: int = 100) -> tuple[np.ndarray, np.ndarray]:
        """Recall and precision at up to ``points`` ranks."""
        true = np.cumsum(self.right)
        ranks = np.unique(np.linspace(0, len(true) - 1, points).astype(int))
        return true[ranks] / max(1, true[-1]), true[ranks] / (ranks + 1)


def rank(probabilities: np.ndarray, relations: np.ndarray, pairs: Sequence[str]) -> Ranking:
    """Candidates (bag, relation that isn't none), scored by the largest probability over the bag's sentences.

    Args:
        probabilities: of sentences, (N, C).
        relations: (N,) numbers; a bag's truth are all that its sentences have.
        pairs: bag keys.
    """
    return ranked(*candidates(probabilities, relations, pairs))


def ranked(scores: np.ndarray, truth: np.ndarray) -> Ranking:
    """``candidates`` in order of their scores."""
    order = np.argsort(-scores.ravel(), kind="stable")
    return Ranking(truth.ravel()[order])


def candidates(probabilities: np.ndarray, relations: np.ndarray, pairs: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Score and truth of each bag and relation that isn't none, (G, C - 1) each; bags in order of their first sentence.

    Args: as of ``rank``.
    """
    numbers = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
    bags = np.array([numbers[pair] for pair in pairs])
    scores = np.full((len(numbers), probabilities.shape[1]), -np.inf)
    np.maximum.at(scores, bags, probabilities)
    truth = np.zeros(scores.shape, dtype=bool)
    truth[bags, relations] = True
    return scores[:, 1:], truth[:, 1:]


def resampled_average_precision(scores: np.ndarray, truth: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """Average precision of resamples of bags, (R,); NaN where a resample has no true candidate.

    A bag that is drawn w times puts its candidates w times at the same rank, so one order serves all resamples.

    Args:
        scores, truth: of candidates, (G, C - 1).
        picks: numbers of bags, (R, G).
    """
    order = np.argsort(-scores.ravel(), kind="stable")
    right = truth.ravel()[order]
    bags = order // scores.shape[1]
    found = np.empty(len(picks))
    for number, row in enumerate(picks):
        counts = np.bincount(row, minlength=len(scores))[bags]
        weights = counts * right
        hits = weights.sum()
        # Candidates that weren't drawn stand nowhere: the rank before the first one drawn is 0 as well.
        ranks = np.maximum(np.cumsum(counts), 1)
        found[number] = (weights * np.cumsum(weights) / ranks).sum() / hits if hits else np.nan
    return found


def micro_f1(predicted: np.ndarray, gold: np.ndarray) -> float:
    """F1 over all classes but 0 (no relation), pooled."""
    hits = int(((predicted == gold) & (gold > 0)).sum())
    stated, wanted = int((predicted > 0).sum()), int((gold > 0).sum())
    return 2 * hits / (stated + wanted) if stated + wanted else 0.0


def log_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """log softmax(z / T), (N, C), in float64."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = scaled - scaled.max(1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(1, keepdims=True))


def negative_log_likelihood(logits: np.ndarray, gold: np.ndarray, temperature: float = 1.0) -> float:
    """Mean of -log p(gold), in nats."""
    return float(-log_softmax(logits, temperature)[np.arange(len(gold)), gold].mean())


def fit_temperature(logits: np.ndarray, gold: np.ndarray, lowest: float = 0.05, highest: float = 20.0) -> float:
    """The one temperature with the lowest NLL (Guo et al. 2017), by golden section on log T; NLL is convex in 1/T."""
    shrink = (5**0.5 - 1) / 2
    low, high = np.log(lowest), np.log(highest)
    for _ in range(60):
        inner = high - shrink * (high - low), low + shrink * (high - low)
        losses = [negative_log_likelihood(logits, gold, float(np.exp(value))) for value in inner]
        low, high = (low, inner[1]) if losses[0] < losses[1] else (inner[0], high)
    return float(np.exp((low + high) / 2))


def calibration_error(probabilities: np.ndarray, gold: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: |accuracy - confidence| over equal bins of confidence, weighted by their sizes."""
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    right = predicted == gold
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(right[which == b].mean() - confidence[which == b].mean()) * (which == b).mean()
        for b in range(bins)
        if (which == b).any()
    ]
    return float(sum(gaps))


def evaluate(
    logits: np.ndarray, gold: np.ndarray, pairs: Sequence[str], temperature: float | None = None
) -> dict[str, float]:
    """All scores: ``auc`` and ``micro_f1`` x 100, ``p@N`` x 100, ``nll``, ``calibration_error``; and, with a
    temperature fitted on development data, ``nll_fitted`` and ``calibration_error_fitted``."""
    probabilities = np.exp(log_softmax(logits))
    ranking = rank(probabilities, gold, pairs)
    found = {
        "auc": 100 * ranking.average_precision,
        **{f"p@{count}": 100 * ranking.precision_at(count) for count in RANKS},
        "micro_f1": 100 * micro_f1(probabilities.argmax(1), gold),
        "nll": negative_log_likelihood(logits, gold),
        "calibration_error": calibration_error(probabilities, gold),
    }
    if temperature is not None:
        found["nll_fitted"] = negative_log_likelihood(logits, gold, temperature)
        fitted = np.exp(log_softmax(logits, temperature))
        found["calibration_error_fitted"] = calibration_error(fitted, gold)
        found["temperature"] = temperature
    return found
