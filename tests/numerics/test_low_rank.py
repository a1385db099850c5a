from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compresskit.numerics import low_rank
from compresskit.numerics.low_rank import (
    Candidate,
    allocate,
    break_even,
    factors,
    spectrum,
    square_root,
    weighted_error,
)

SIZES = st.integers(1, 90)


def inputs(rows: int = 400, features: int = 20, *, excited: int | None = None, seed: int = 0) -> Tensor:
    """Correlated inputs (N, I) of very unequal strength; with ``excited``, only in a subspace of that dimension."""
    generator = torch.Generator().manual_seed(7)
    mixing = torch.randn(features, features, dtype=torch.float64, generator=generator)
    mixing = mixing * torch.logspace(0, -2, features, dtype=torch.float64)[:, None]
    if excited is not None:
        mixing[excited:] = 0
    drawn = torch.randn(rows, features, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return drawn @ mixing


def second_moment(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def weight(rows: int = 30, columns: int = 20) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64)


def product(w: Tensor, found: low_rank.Spectrum, rank: int) -> Tensor:
    up, down = factors(w, found, rank)
    assert up.shape == (w.shape[0], rank)
    assert down.shape == (rank, w.shape[1])
    return up @ down


@given(SIZES, SIZES)
def test_break_even_is_the_last_rank_that_is_smaller(rows: int, columns: int) -> None:
    rank = break_even(rows, columns)
    assert rank * (rows + columns) < rows * columns <= (rank + 1) * (rows + columns)


@given(SIZES, SIZES, st.integers(1, 100))
def test_rank_of_a_share_is_the_largest_within_it(rows: int, columns: int, percent: int) -> None:
    rank = low_rank.rank_of_share(percent / 100, rows, columns)
    assert 100 * rank * (rows + columns) <= percent * rows * columns < 100 * (rank + 1) * (rows + columns)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.floats(0.01, 1))
def test_rank_of_energy_is_the_smallest_that_keeps_it(values: list[float], share: float) -> None:
    values = sorted(values, reverse=True)
    whole = sum(value**2 for value in values)
    rank = low_rank.rank_of_energy(torch.tensor(values, dtype=torch.float64), share)
    assert 1 <= rank <= len(values)
    assert sum(value**2 for value in values[:rank]) >= share * whole * (1 - 1e-9)
    if rank > 1:
        assert sum(value**2 for value in values[: rank - 1]) < share * whole * (1 + 1e-9)


def test_rounding_keeps_at_least_one_multiple() -> None:
    assert [low_rank.rounded(rank, 8) for rank in (1, 7, 8, 15, 16)] == [8, 8, 8, 8, 16]
    assert low_rank.rounded(5, 1) == 5


@pytest.mark.parametrize("excited", [None, 6])
def test_square_root_also_of_a_singular_moment(excited: int | None) -> None:
    moment = second_moment(inputs(excited=excited))
    root = square_root(moment)
    torch.testing.assert_close(root @ root.T, moment, rtol=0, atol=1e-12)


@pytest.mark.parametrize("excited", [None, 6])
@pytest.mark.parametrize("shape", [(30, 20), (12, 20)])
def test_the_loss_is_exactly_the_tail_of_the_spectrum(shape: tuple[int, int], excited: int | None) -> None:
    w, moment = weight(*shape), second_moment(inputs(excited=excited))
    found = spectrum(w, square_root(moment))
    for rank in range(1, min(shape) + 1):
        error = weighted_error(w, product(w, found, rank), moment)
        assert error == pytest.approx(found.loss(rank), rel=1e-9, abs=1e-7 * found.loss(0))


def test_the_plain_loss_is_that_of_eckart_and_young() -> None:
    w = weight()
    found = spectrum(w)
    for rank in (1, 7, 19):
        error = torch.linalg.matrix_norm(w - product(w, found, rank))
        tail = torch.linalg.svdvals(w)[rank:].square().sum().sqrt()
        assert float(error) == pytest.approx(float(tail), rel=1e-10)
        assert found.loss(rank) == pytest.approx(float(tail), rel=1e-10)


def test_equals_the_published_formula_where_that_is_defined() -> None:
    """SVD-LLM: W' = U_r Σ_r V_rᵀ S⁻¹ with S the Cholesky factor; any S with S Sᵀ = M gives the same W'."""
    w, moment = weight(), second_moment(inputs())
    lower = torch.linalg.cholesky(moment)
    left, values, right = torch.linalg.svd(w @ lower, full_matrices=False)
    for rank in (1, 5, 15):
        published = left[:, :rank] * values[:rank] @ right[:rank] @ torch.linalg.inv(lower)
        torch.testing.assert_close(product(w, spectrum(w, square_root(moment)), rank), published, rtol=0, atol=1e-8)


def test_whitening_beats_plain_on_inputs_that_it_has_not_seen() -> None:
    w = weight()
    moment, unseen = second_moment(inputs(seed=0)), second_moment(inputs(seed=1))
    for rank in range(1, 12):
        plain, whitened = (product(w, found, rank) for found in (spectrum(w), spectrum(w, square_root(moment))))
        assert weighted_error(w, whitened, unseen) < weighted_error(w, plain, unseen)
        assert torch.linalg.matrix_norm(w - whitened) > torch.linalg.matrix_norm(w - plain)


def test_no_nearby_factors_are_better() -> None:
    w, moment = weight(), second_moment(inputs())
    up, down = factors(w, spectrum(w, square_root(moment)), 4)
    least = weighted_error(w, up @ down, moment)
    for _ in range(50):
        other = (up + 0.01 * torch.randn_like(up)) @ (down + 0.01 * torch.randn_like(down))
        assert weighted_error(w, other, moment) > least


def test_full_rank_gives_the_matrix_back() -> None:
    left = low_rank.sensitivity_root(second_moment(inputs(features=30)))
    for shape in ((30, 20), (30, 44)):
        w = weight(*shape)
        for root in (None, square_root(second_moment(inputs(features=shape[1])))):
            for weigh in (None, left):
                torch.testing.assert_close(product(w, spectrum(w, root, weigh), min(shape)), w, rtol=0, atol=1e-10)


def test_zeros_and_unused_inputs_give_finite_factors() -> None:
    nothing = torch.zeros(6, 4, dtype=torch.float64)
    assert torch.equal(product(nothing, spectrum(nothing), 2), nothing)
    w = weight(6, 4)
    unseen = spectrum(w, torch.zeros(4, 4, dtype=torch.float64))
    assert unseen.loss(0) == 0
    assert bool(torch.isfinite(product(w, unseen, 2)).all())


def test_both_factors_are_of_one_magnitude() -> None:
    w, moment = 1e4 * weight(), second_moment(inputs())
    found = spectrum(w, square_root(moment))
    up, down = factors(w, found, 10)
    after_down = (down @ moment * down).sum(1).sqrt()
    torch.testing.assert_close(up.norm(dim=0), after_down, rtol=1e-8, atol=0)


def test_sensitivity_is_half_uniform_half_the_gradients() -> None:
    moment = second_moment(inputs(features=9))
    root = low_rank.sensitivity_root(moment)
    unit = torch.eye(9, dtype=torch.float64)
    torch.testing.assert_close(root.T @ root, moment / moment.diagonal().mean() + unit)
    assert float((root.T @ root).diagonal().mean()) == pytest.approx(2)
    assert torch.equal(root, root.triu())
    for same in (torch.zeros(9, 9), torch.eye(9)):
        flat = low_rank.sensitivity_root(same)
        torch.testing.assert_close(flat / flat[0, 0], unit)


def test_two_sided_loss_is_exactly_the_tail_and_below_the_one_sided() -> None:
    w, moment = weight(), second_moment(inputs())
    left = low_rank.sensitivity_root(second_moment(inputs(features=30, seed=3)))
    root = square_root(moment)
    both, inputs_only = spectrum(w, root, left), spectrum(w, root)
    for rank in (1, 4, 9, 16):
        felt = float(torch.linalg.matrix_norm(left @ (w - product(w, both, rank)) @ root))
        assert felt == pytest.approx(both.loss(rank), rel=1e-9)
        assert felt < float(torch.linalg.matrix_norm(left @ (w - product(w, inputs_only, rank)) @ root))


def spent(candidates: list[Candidate], ranks: list[int | None]) -> int:
    return sum(
        item.out_features * item.in_features if rank is None else rank * (item.out_features + item.in_features)
        for item, rank in zip(candidates, ranks, strict=True)
    )


def lost(candidates: list[Candidate], ranks: list[int | None]) -> float:
    return sum(
        0.0 if rank is None else float(item.gains[rank:].sum()) for item, rank in zip(candidates, ranks, strict=True)
    )


def falling(count: int, scale: float, generator: torch.Generator) -> Tensor:
    return scale * torch.rand(count, generator=generator, dtype=torch.float64).sort(descending=True).values


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.1, 0.8))
def test_a_budget_is_shared_as_exhaustive_search_would(seed: int, share: float) -> None:
    """Matrices of one size, kept from becoming dense: then the greedy choice is optimal."""
    generator = torch.Generator().manual_seed(seed)
    candidates = [Candidate(8, 8, falling(8, scale, generator)) for scale in (1.0, 0.3, 3.0)]
    limit = break_even(8, 8)
    budget = min(int(share * 3 * 64), limit * 16 * 3)
    ranks = allocate(candidates, budget)
    if None in ranks:
        return
    choices = [list(pick) for pick in itertools.product(range(1, limit + 1), repeat=3)]
    best = min(lost(candidates, list(pick)) for pick in choices if spent(candidates, list(pick)) <= max(budget, 48))
    assert lost(candidates, ranks) == pytest.approx(best)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.floats(0.05, 1), st.sampled_from([1, 2, 4]))
def test_a_budget_is_kept_and_used(seed: int, share: float, step: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(40, 24), (24, 40), (24, 24), (2, 2)]
    candidates = [
        Candidate(rows, columns, falling(min(rows, columns), 10.0 ** torch.randn((), generator=generator), generator))
        for rows, columns in shapes
    ]
    total = sum(rows * columns for rows, columns in shapes)
    ranks = allocate(candidates, int(share * total), step)
    least = spent(candidates, allocate(candidates, 0, step))
    assert spent(candidates, ranks) <= max(int(share * total), least)
    assert all(rank is None or rank % step == 0 for rank in ranks)
    assert all(rank is None or rank <= break_even(*shape) for rank, shape in zip(ranks, shapes, strict=True)), (
        "factors are smaller than the matrix"
    )
    assert ranks[3] is None, "a matrix that no factors are smaller than stays"
    assert allocate(candidates, total, step) == [None] * 4
    more = allocate(candidates, int(share * total) + 400, step)
    assert lost(candidates, more) <= lost(candidates, ranks) + 1e-12


def test_a_budget_goes_where_the_loss_is() -> None:
    flat, steep = torch.ones(20), torch.logspace(2, -4, 20)
    ranks = allocate([Candidate(20, 20, flat), Candidate(20, 20, steep)], 400)
    assert ranks[0] is not None
    assert ranks[1] is not None
    assert float(steep[ranks[1]]) <= 1 <= float(steep[ranks[1] - 1])
