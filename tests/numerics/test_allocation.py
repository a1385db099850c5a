from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compresskit.numerics import allocation
from compresskit.numerics.allocation import Option, allocate, allocate_oracle


def items(seed: int, count: int = 4, choices: int = 4) -> list[list[Option]]:
    chance = random.Random(seed)
    return [[Option(chance.randint(1, 50), chance.random()) for _ in range(choices)] for _ in range(count)]


def total(made: list[list[Option]], chosen: list[int]) -> tuple[int, float]:
    picked = [options[index] for options, index in zip(made, chosen, strict=True)]
    return sum(option.cost for option in picked), sum(option.loss for option in picked)


@given(seed=st.integers(0, 10_000), share=st.floats(0.2, 1))
def test_equals_trying_all_choices(seed: int, share: float) -> None:
    made = items(seed)
    budget = int(share * 200)
    chosen = allocate(made, budget)
    if chosen is None:
        assert sum(min(option.cost for option in options) for options in made) > budget
        return
    cost, loss = total(made, chosen)
    assert cost <= budget
    assert loss == pytest.approx(allocate_oracle(made, budget))


def test_equal_items_and_an_even_budget_give_equal_bits() -> None:
    options = [Option(100 * bits, 4.0**-bits) for bits in (2, 3, 4, 8)]
    assert allocate([options] * 12, 12 * 300) == [1] * 12
    assert allocate([options] * 12, 12 * 400) == [2] * 12


def test_more_budget_is_never_worse() -> None:
    made = items(3, count=12)
    losses = [total(made, chosen)[1] for budget in range(150, 400, 25) if (chosen := allocate(made, budget))]
    assert losses == sorted(losses, reverse=True)


def test_too_many_states_are_rounded_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    made = [
        [Option(bits * chance.randint(10_000, 90_000), chance.random() * 4.0**-bits) for bits in (2, 3, 4, 8)]
        for _ in range(24)
    ]
    budget = sum(options[2].cost for options in made)
    exact = allocate(made, budget)
    monkeypatch.setattr(allocation, "STATES", 400)
    rounded = allocate(made, budget)
    assert exact is not None
    assert rounded is not None
    assert total(made, rounded)[0] <= budget
    assert total(made, exact)[1] <= total(made, rounded)[1] <= 1.05 * total(made, exact)[1]


def test_a_budget_below_the_cheapest() -> None:
    assert allocate([[Option(5, 1.0)], [Option(6, 1.0)]], 10) is None
    assert allocate([[Option(5, 1.0)], [Option(6, 1.0)]], 11) == [0, 0]
