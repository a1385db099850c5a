"""Who is on the frontier, who is dominated and by whom, who can't be told apart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compresskit.report.trade import Point, Span, standings


def point(name: str, cost: float, quality: float, *, half: float = 0.0) -> Point:
    return Point(name, Span(cost, cost - half, cost + half), Span(quality, quality - half, quality + half))


def test_frontier_and_dominated() -> None:
    found = standings([point("slow", 10, 90), point("fast", 2, 80), point("worse", 11, 85), point("between", 5, 85)])
    assert {name: standing.state for name, standing in found.items()} == {
        "slow": "frontier",
        "fast": "frontier",
        "between": "frontier",
        "worse": "dominated",
    }
    assert found["worse"].by == "between", "the cheapest of those that are better"


def test_behind_by_less_than_the_intervals_is_tied() -> None:
    found = standings([point("a", 10, 80, half=1), point("b", 10.5, 79.5, half=1), point("c", 13, 79.5, half=1)])
    assert (found["b"].state, found["b"].by) == ("tied", "a")
    assert (found["c"].state, found["c"].by) == ("dominated", "a")
    assert found["a"].ties == ("b",)


def test_less_may_be_better() -> None:
    points = [point("a", 10, 20), point("b", 5, 30), point("c", 11, 25)]
    assert [standings(points, higher_is_better=False)[name].state for name in "abc"] == [
        "frontier",
        "frontier",
        "dominated",
    ]
    assert standings(points)["a"].state == "dominated"


def test_equal_points_are_both_on_the_frontier() -> None:
    found = standings([point("a", 1, 1), point("b", 1, 1)])
    assert [found[name].state for name in "ab"] == ["frontier", "frontier"]
    assert found["a"].ties == ("b",)


def test_slack_makes_near_costs_equal() -> None:
    points = [point("a", 100.0, 5), point("b", 100.4, 5)]
    assert standings(points)["b"].state == "dominated"
    assert standings(points, slack=0.01)["b"].state == "tied"


def test_an_interval_always_holds_its_value() -> None:
    assert Span.of(5.0, (6.0, 7.0)) == Span(5.0, 5.0, 7.0)
    assert Span.of(5.0, None) == Span(5.0, 5.0, 5.0)


_figures = st.floats(0.1, 100, allow_nan=False)


@given(st.lists(st.tuples(_figures, _figures, st.floats(0, 5)), min_size=1, max_size=8))
def test_one_is_always_on_the_frontier_and_no_frontier_point_is_beaten(rows: list[tuple[float, float, float]]) -> None:
    points = [point(str(index), cost, quality, half=half) for index, (cost, quality, half) in enumerate(rows)]
    found = standings(points)
    frontier = [each for each in points if found[each.name].state == "frontier"]
    assert frontier
    for each in frontier:
        assert not any(
            other.cost.value < each.cost.value and other.quality.value > each.quality.value for other in points
        )
    for each in points:
        if found[each.name].state != "frontier":
            by = next(other for other in points if other.name == found[each.name].by)
            assert by.cost.value <= each.cost.value
            assert by.quality.value >= each.quality.value


def test_paired_comparisons_tell_apart_what_the_whiskers_do_not() -> None:
    def paired(name: str, cost: float, ratio: tuple[float, float], change: tuple[float, float]) -> Point:
        wide = point(name, cost, 80.0 + change[0], half=50.0)
        spans = (Span.of(sum(ratio) / 2, ratio), Span.of(change[0], change))
        return Point(wide.name, wide.cost, wide.quality, cost_ratio=spans[0], quality_change=spans[1])

    base, fast = paired("base", 10, (1, 1), (0, 0)), paired("fast", 6, (0.58, 0.62), (0, 0.1))
    assert standings([base, fast])["base"].state == "dominated"
    assert standings([base, fast])["fast"].ties == ()
    near = paired("near", 9.8, (0.95, 1.03), (-0.1, 0.1))
    assert standings([base, near])["base"].ties == ("near",)
    unpaired = point("unpaired", 6, 81, half=50)
    assert standings([base, unpaired])["base"].state == "tied", "without a pair the whiskers decide"
