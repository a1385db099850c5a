"""Scores by hand, and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from compresskit.tasks.relation_extraction.evaluation import (
    calibration_error,
    evaluate,
    fit_temperature,
    log_softmax,
    micro_f1,
    negative_log_likelihood,
    rank,
)


def test_a_bag_is_ranked_by_its_best_sentence() -> None:
    probabilities = np.array([[0.1, 0.7, 0.2], [0.0, 0.1, 0.9], [0.2, 0.5, 0.3]])
    # Bag p: relation 1 at 0.7 (true), relation 2 at 0.9 (false); bag q: relation 1 at 0.5 (false), 2 at 0.3 (true).
    ranking = rank(probabilities, np.array([1, 1, 2]), ["p", "p", "q"])
    assert ranking.right.tolist() == [False, True, False, True]
    assert ranking.average_precision == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert ranking.precision_at(2) == 0.5
    recall, precision = ranking.curve()
    assert recall.tolist() == [0, 0.5, 0.5, 1]
    assert precision.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])


def test_area_and_f1_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(300, 5))
    gold = rng.integers(0, 5, 300)
    pairs = [str(number) for number in range(300)]
    probabilities = np.exp(log_softmax(logits))
    truth = np.eye(5)[gold][:, 1:].ravel()
    expected = average_precision_score(truth, probabilities[:, 1:].ravel())
    assert rank(probabilities, gold, pairs).average_precision == pytest.approx(expected)
    predicted = logits.argmax(1)
    assert micro_f1(predicted, gold) == pytest.approx(f1_score(gold, predicted, labels=[1, 2, 3, 4], average="micro"))


def test_a_bag_with_two_relations_has_both_as_truth() -> None:
    probabilities = np.array([[0.1, 0.6, 0.3], [0.1, 0.3, 0.6]])
    assert rank(probabilities, np.array([1, 2]), ["p", "p"]).average_precision == 1.0


def test_the_fitted_temperature_is_the_one_that_was_put_in() -> None:
    rng = np.random.default_rng(1)
    logits = 2 * rng.normal(size=(20_000, 4))
    probabilities = np.exp(log_softmax(logits))
    gold = (probabilities.cumsum(1) > rng.random((20_000, 1))).argmax(1)
    assert fit_temperature(3 * logits, gold) == pytest.approx(3.0, rel=0.05)
    found = fit_temperature(3 * logits, gold)
    assert negative_log_likelihood(3 * logits, gold, found) < negative_log_likelihood(3 * logits, gold)


def test_likelihood_and_calibration_by_hand() -> None:
    logits = np.log(np.array([[0.75, 0.25], [0.25, 0.75]]))
    assert negative_log_likelihood(logits, np.array([0, 0])) == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    # Both say 0.75, one of two is right.
    assert calibration_error(np.exp(logits), np.array([0, 0])) == pytest.approx(0.25)


def test_all_scores_together() -> None:
    logits = np.array([[0.0, 3.0], [3.0, 0.0]])
    found = evaluate(logits, np.array([1, 0]), ["p", "q"], temperature=2.0)
    assert found["auc"] == 100
    assert found["micro_f1"] == 100
    assert found["nll_fitted"] > found["nll"]
