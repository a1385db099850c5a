"""Orders that cancel a drift, numbers of calls and blocks, names of blocks."""

from __future__ import annotations

from collections import Counter

import pytest

from compresskit.bench.schedule import PROFILES, block_id, order, plan_slices


@pytest.mark.parametrize("arms", [["a", "b"], ["a", "b", "c", "d"]])
def test_an_order_goes_there_and_back(arms: list[str]) -> None:
    for number in range(20):
        turns = order(arms, seed=1, cell="c", replicate=0, number=number)
        assert turns == turns[::-1]
        assert sorted(turns[: len(arms)]) == arms
        places = {arm: sum(place for place, name in enumerate(turns) if name == arm) for arm in arms}
        assert len(set(places.values())) == 1


def test_orders_are_random_and_recorded_by_the_seed() -> None:
    turns = [tuple(order(["a", "b"], seed=1, cell="c", replicate=0, number=number)) for number in range(200)]
    assert set(turns) == {("a", "b", "b", "a"), ("b", "a", "a", "b")}
    assert 60 < Counter(turns)[("a", "b", "b", "a")] < 140
    assert turns == [tuple(order(["a", "b"], seed=1, cell="c", replicate=0, number=number)) for number in range(200)]
    assert turns != [tuple(order(["a", "b"], seed=2, cell="c", replicate=0, number=number)) for number in range(200)]


@pytest.mark.parametrize("call_ms", [0.01, 0.5, 3.0, 45.0, 500.0, 20_000.0])
def test_slices_of_fast_and_slow_models(call_ms: float) -> None:
    profile = PROFILES["quick"]
    found = plan_slices(profile, call_ms)
    assert found.calls >= 1
    assert profile.least_blocks <= found.blocks <= profile.most_blocks
    assert found.warm == (1 if call_ms < 20 else 0)
    if call_ms < 1000:
        assert 2 * found.blocks * (found.calls + found.warm) * call_ms / 1e3 <= 1.1 * profile.seconds


def test_a_block_is_known_by_all_that_it_depends_on() -> None:
    names = {
        block_id(models, cell, inputs, machine, replicate=replicate, number=number)
        for models in (["x"], ["y"], ["x", "y"])
        for cell in ("c", "d")
        for inputs in ("i", "j")
        for machine in ("m", "n")
        for replicate in (0, 1)
        for number in (0, 1)
    }
    assert len(names) == 3 * 2**5


@pytest.mark.parametrize("name", list(PROFILES))
def test_a_profile_says_its_rule(name: str) -> None:
    assert "s/arm" in PROFILES[name].rule
