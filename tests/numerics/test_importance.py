from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from compresskit.numerics.importance import (
    damped_inverse,
    eliminate,
    group_sums,
    removal_costs,
    top_indices,
    wanda,
    wanda_matrix,
)


def inputs(rows: int = 300, features: int = 12) -> Tensor:
    mixing = torch.randn(features, features, dtype=torch.float64) / features**0.5
    return torch.randn(rows, features, dtype=torch.float64) @ mixing


def refit_error(weight: Tensor, covariance: Tensor, keep: list[int]) -> float:
    """tr(E C Eᵀ) of the best weights on the inputs ``keep``: E x is what the output loses."""
    rest = [index for index in range(weight.shape[1]) if index not in keep]
    change = weight[:, rest] @ covariance[rest][:, keep] @ torch.linalg.inv(covariance[keep][:, keep])
    difference = torch.zeros_like(weight)
    difference[:, keep], difference[:, rest] = change, -weight[:, rest]
    return float((difference @ covariance * difference).sum())


def test_wanda_matrix_entry_by_entry() -> None:
    x, weight = inputs(), torch.randn(5, 12)
    scores = wanda_matrix(weight, x.norm(dim=0))
    for row, column in itertools.product(range(5), range(12)):
        expected = abs(float(weight[row, column])) * float(x[:, column].square().sum() ** 0.5)
        assert float(scores[row, column]) == pytest.approx(expected)


def test_wanda_with_equal_inputs_is_magnitude() -> None:
    weight = torch.randn(5, 12)
    torch.testing.assert_close(wanda(weight, torch.full((12,), 2.0)), 2 * weight.double().norm(dim=0))


def test_wanda_of_groups() -> None:
    x, weight = inputs(), torch.randn(5, 12)
    scores = wanda(weight, x.norm(dim=0), size=3)
    matrix = wanda_matrix(weight, x.norm(dim=0))
    expected = torch.stack([matrix[:, start : start + 3].norm() for start in range(0, 12, 3)])
    torch.testing.assert_close(scores, expected)


def test_group_sums() -> None:
    assert group_sums(torch.arange(6.0), 2).tolist() == [1.0, 5.0, 9.0]


def test_the_cost_of_removal_is_the_error_after_the_best_refit() -> None:
    x, weight = inputs(), torch.randn(5, 12, dtype=torch.float64)
    covariance = x.T @ x / len(x)
    costs = removal_costs(weight, torch.linalg.inv(covariance))
    for gone in range(12):
        keep = [index for index in range(12) if index != gone]
        assert float(costs[gone]) == pytest.approx(refit_error(weight, covariance, keep), rel=1e-8)


def test_the_cost_of_one_weight_is_obs() -> None:
    """w² / 2[H⁻¹] with H = 2 x xᵀ."""
    x, weight = inputs(), torch.randn(1, 12, dtype=torch.float64)
    hessian = 2 * x.T @ x
    expected = weight[0].square() / (2 * torch.linalg.inv(hessian).diagonal())
    torch.testing.assert_close(removal_costs(weight, torch.linalg.inv(x.T @ x)), expected)


def test_elimination_one_by_one_is_greedy_by_the_true_error() -> None:
    x, weight = inputs(), torch.randn(5, 12, dtype=torch.float64)
    covariance = x.T @ x / len(x)
    keep = list(range(12))
    for _ in range(7):
        errors = {gone: refit_error(weight, covariance, [i for i in keep if i != gone]) for gone in keep}
        keep.remove(min(errors, key=errors.__getitem__))
    assert eliminate(weight, covariance, 5, ridge=0.0, rounds=7).tolist() == keep


@pytest.mark.parametrize("rounds", [1, 3, 16])
def test_elimination_in_rounds_keeps_what_was_asked(rounds: int) -> None:
    x, weight = inputs(features=30), torch.randn(5, 30)
    for count in (30, 29, 11, 1):
        kept = eliminate(weight, x.T @ x, count, ridge=0.01, rounds=rounds)
        assert len(kept) == count
        assert kept.tolist() == sorted(set(kept.tolist()))


def test_elimination_beats_wanda_where_inputs_repeat_each_other() -> None:
    """Eight loud inputs that are copies in pairs, four faint ones of their own: copies can go for free."""
    loud, faint = torch.randn(500, 4, dtype=torch.float64), 0.5 * torch.randn(500, 4, dtype=torch.float64)
    x = torch.cat([loud, loud + 1e-3 * torch.randn_like(loud), faint], dim=1)
    weight = torch.ones(3, 12, dtype=torch.float64) + 0.1 * torch.randn(3, 12, dtype=torch.float64)
    covariance = x.T @ x / len(x)
    smart = eliminate(weight, covariance, 8, ridge=1e-6).tolist()
    plain = top_indices(wanda(weight, x.norm(dim=0)), 8).tolist()
    assert set(smart) >= {8, 9, 10, 11}
    assert refit_error(weight, covariance, smart) < 0.01 * refit_error(weight, covariance, plain)


def test_pinned_inputs_stay() -> None:
    x, weight = inputs(), torch.randn(5, 12, dtype=torch.float64)
    weight[:, 4] = 0
    assert 4 not in eliminate(weight, x.T @ x, 5, ridge=0.01).tolist()
    assert 4 in eliminate(weight, x.T @ x, 5, ridge=0.01, pinned=torch.tensor([4])).tolist()
    assert eliminate(weight, x.T @ x, 1, ridge=0.01, pinned=torch.tensor([4])).tolist() == [4]


def test_singular_moments_are_damped_and_without_damping_an_error() -> None:
    covariance = torch.ones(4, 4)
    assert bool(torch.isfinite(damped_inverse(covariance, 0.1)).all())
    with pytest.raises(torch.linalg.LinAlgError):
        damped_inverse(covariance, 0.0)


def test_top_indices() -> None:
    scores = torch.tensor([0.5, 2.0, 1.0, 2.0, 0.0])
    assert top_indices(scores, 2).tolist() == [1, 3]
    assert top_indices(scores, 1).tolist() == [1], "the lower index of equal ones"
    assert top_indices(scores, 2, torch.tensor([4])).tolist() == [1, 4]
    assert top_indices(scores, 5).tolist() == [0, 1, 2, 3, 4]
    assert scores.tolist() == [0.5, 2.0, 1.0, 2.0, 0.0], "scores are left alone"


@pytest.mark.parametrize("alive", [0, 2])
def test_networks_that_are_dead_but_for_a_few_neurons_are_cut_too(alive: int) -> None:
    variance = torch.zeros(64)
    variance[5 : 5 + alive] = 1.0
    kept = eliminate(torch.randn(8, 64), variance.diag(), 16, ridge=0.03).tolist()
    assert len(kept) == 16
    assert set(range(5, 5 + alive)) <= set(kept)
