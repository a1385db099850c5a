"""How many bits for which matrix: the choice of least loss within a budget of bytes.

The multiple-choice knapsack: one option for each item, their costs within the budget, the sum of losses least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

STATES = 20_000
"""States kept: beyond, costs are rounded up to a share of the budget so small that this many remain."""


@dataclass(frozen=True)
class Option:
    """One way to store an item: its bytes, and what it loses."""

    cost: int
    loss: float


def allocate(items: Sequence[Sequence[Option]], budget: int) -> list[int] | None:
    """The index of the option chosen for each item, or None where not even the cheapest fit into ``budget``.

    Dynamic programming over the costs reached so far, of which only those stay that no other beats in both cost and
    loss: exact while there are no more than ``STATES`` of them, which many matrices of few sizes keep to.
    """
    cheapest = [min(option.cost for option in options) for options in items]
    if sum(cheapest) > budget:
        return None
    grain = 1
    while True:
        found = _within(items, budget, grain, cheapest)
        if found is not None:
            return found
        grain = max(2 * grain, budget // STATES)


def _within(items: Sequence[Sequence[Option]], budget: int, grain: int, cheapest: list[int]) -> list[int] | None:
    """``allocate`` with costs rounded up to ``grain``; None if that takes too many states, or none fits."""
    rest = sum(cheapest)
    # Cost so far -> loss so far and the choices, as a chain from the last.
    states: dict[int, tuple[float, tuple[int, object] | None]] = {0: (0.0, None)}
    for options, least in zip(items, cheapest, strict=True):
        rest -= least
        reached: dict[int, tuple[float, tuple[int, object] | None]] = {}
        for cost, (loss, chain) in states.items():
            for index, option in enumerate(options):
                step = option.cost if grain == 1 or option.cost == least else -(-option.cost // grain) * grain
                total = cost + step
                if total + rest > budget:
                    continue
                known = reached.get(total)
                if known is None or loss + option.loss < known[0]:
                    reached[total] = (loss + option.loss, (index, chain))
        states = _undominated(reached)
        if len(states) > STATES and grain < budget:
            return None
    if not states:
        return None
    _, chain = min(states.values(), key=lambda state: state[0])
    chosen: list[int] = []
    while chain is not None:
        chosen.append(chain[0])
        chain = chain[1]  # type: ignore[assignment]
    return chosen[::-1]


def _undominated(
    states: dict[int, tuple[float, tuple[int, object] | None]],
) -> dict[int, tuple[float, tuple[int, object] | None]]:
    """Those that cost less than all others which lose no more."""
    kept = {}
    lowest = float("inf")
    for cost in sorted(states):
        if states[cost][0] < lowest:
            lowest = states[cost][0]
            kept[cost] = states[cost]
    return kept


def allocate_oracle(items: Sequence[Sequence[Option]], budget: int) -> float:
    """The least sum of losses within ``budget``, by trying all choices."""
    return min(
        sum(option.loss for option in choice)
        for choice in product(*items)
        if sum(option.cost for option in choice) <= budget
    )
