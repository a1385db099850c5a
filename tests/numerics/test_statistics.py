"""Every statistic against another way to get it: scipy, a plain loop, or simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from compresskit.numerics import statistics


@pytest.mark.parametrize(
    ("quantile", "level", "count"),
    [
        (0.5, 0.99, 7),
        (0.5, 0.95, 5),
        (0.9, 0.99, 44),
        (0.9, 0.95, 29),
        (0.95, 0.99, 90),
        (0.95, 0.95, 59),
        (0.99, 0.99, 459),
        (0.99, 0.95, 299),
        (0.999, 0.99, 4603),
    ],
)
def test_least_samples(quantile: float, level: float, count: int) -> None:
    assert statistics.least_samples(quantile, level) == count
    assert quantile**count <= 1 - level < quantile ** (count - 1)


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (10, 0.3), (459, 0.99), (5000, 0.5)])
def test_binomial_cdf(n: int, p: float) -> None:
    np.testing.assert_allclose(statistics.binomial_cdf(n, p), stats.binom.cdf(np.arange(n + 1), n, p), atol=1e-11)


@pytest.mark.parametrize(("n", "q"), [(7, 0.5), (30, 0.5), (100, 0.9), (1000, 0.99), (500, 0.1)])
def test_quantile_interval_is_scipys(n: int, q: float) -> None:
    samples = np.random.default_rng(n).lognormal(size=n)
    found = statistics.quantile_interval(samples, q)
    wanted = stats.quantile_test(samples, p=q).confidence_interval(0.95)
    assert found == pytest.approx((wanted.low, wanted.high))


def test_quantile_interval_needs_samples() -> None:
    assert statistics.quantile_interval(np.arange(5.0), 0.5) is None
    assert statistics.quantile_interval(np.arange(6.0), 0.5) == (0.0, 5.0)
    assert statistics.quantile_interval(np.arange(300.0), 0.99) is None


def test_quantile_interval_covers() -> None:
    generator = np.random.default_rng(0)
    draws = generator.exponential(size=(2000, 60))
    truth = -np.log(0.1)
    found = [statistics.quantile_interval(row, 0.9) for row in draws]
    covered = [low <= truth <= high for low, high in filter(None, found)]
    assert len(covered) == 2000
    assert 0.945 < np.mean(covered) < 0.99


@pytest.mark.parametrize("q", [0.01, 0.1, 0.9, 0.95, 0.99, 1.0])
def test_quantile_is_a_sample(q: float) -> None:
    samples = np.random.default_rng(1).normal(size=101)
    assert statistics.quantile(samples, q) == np.quantile(samples, q, method="inverted_cdf")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 100])
def test_midmean(size: int) -> None:
    values = np.random.default_rng(size).normal(size=(3, size))
    np.testing.assert_allclose(statistics.midmean(values), stats.trim_mean(values, 0.25, axis=1))


def test_bootstrap_of_one_process_is_scipys() -> None:
    values = np.random.default_rng(3).normal(size=40)
    draws = statistics.hierarchical_bootstrap([values], seed=1)
    wanted = stats.bootstrap(
        (values,), lambda x, axis: statistics.midmean(x, axis), method="percentile", rng=np.random.default_rng(2)
    )
    low, high = statistics.interval(draws)
    width = wanted.confidence_interval.high - wanted.confidence_interval.low
    assert low == pytest.approx(wanted.confidence_interval.low, abs=0.05 * width)
    assert high == pytest.approx(wanted.confidence_interval.high, abs=0.05 * width)


def test_bootstrap_against_a_plain_loop() -> None:
    generator = np.random.default_rng(4)
    groups = [generator.normal(mean, 1.0, size=size) for mean, size in ((0.0, 9), (2.0, 12), (1.0, 7))]
    centres = [stats.trim_mean(group, 0.25) for group in groups]
    middle = np.mean(centres)
    draws = []
    for _ in range(4000):
        total = 0.0
        for number in generator.integers(0, 3, size=3):
            again = generator.choice(groups[number], size=len(groups[number]))
            total += np.sqrt(1.5) * (centres[number] - middle) + stats.trim_mean(again, 0.25) - centres[number]
        draws.append(middle + total / 3)
    found = statistics.hierarchical_bootstrap(groups, seed=5)
    assert len(found) == 10_000
    assert np.mean(found) == pytest.approx(np.mean(draws), abs=0.05)
    assert np.std(found) == pytest.approx(np.std(draws), rel=0.06)
    np.testing.assert_array_equal(found, statistics.hierarchical_bootstrap(groups, seed=5))


def test_spread_between_two_processes_is_not_halved() -> None:
    draws = statistics.hierarchical_bootstrap([np.zeros(10), np.ones(10)])
    assert np.var(draws) == pytest.approx(np.var([0.0, 1.0], ddof=1) / 2, rel=0.05)


def test_intervals_cover_where_processes_differ() -> None:
    generator = np.random.default_rng(6)
    covered = []
    for trial in range(150):
        groups = [generator.normal(generator.normal(0, 0.5), 1.0, size=20) for _ in range(6)]
        low, high = statistics.interval(statistics.hierarchical_bootstrap(groups, resamples=600, seed=trial))
        covered.append(low <= 0.0 <= high)
    assert np.mean(covered) > 0.87  # the percentile interval of six groups is a little narrow


def test_bootstrap_p() -> None:
    draws = np.random.default_rng(7).normal(1.0, 0.5, size=200_000)
    assert statistics.bootstrap_p(draws) == pytest.approx(2 * stats.norm.cdf(-2), rel=0.03)
    assert statistics.bootstrap_p(np.ones(999)) == 2 / 1000
    assert statistics.bootstrap_p(np.zeros(10)) == 1.0


def test_paired_bootstrap() -> None:
    values = np.random.default_rng(8).normal(0.2, 1.0, size=300)
    draws = statistics.paired_bootstrap(values, seed=1)
    assert np.mean(draws) == pytest.approx(values.mean(), abs=0.003)
    assert np.std(draws) == pytest.approx(values.std() / np.sqrt(300), rel=0.03)


def test_holm() -> None:
    assert statistics.holm([]) == []
    assert statistics.holm([0.03]) == [0.03]
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 0), (5, 9), (40, 41), (120, 300)])
def test_mcnemar(first: int, second: int) -> None:
    wanted = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert statistics.mcnemar(first, second) == pytest.approx(wanted)
