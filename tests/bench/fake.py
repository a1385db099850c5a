"""Blocks without a run: times that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from compresskit.bench.blocks import Block, Slice
from compresskit.bench.record import Cell
from compresskit.bench.schedule import order

CELL = Cell(id="encode/b1/t16/th1", scenario="encode", batch=1, length=16, threads=1)


def blocks(
    factors: Mapping[str, float],
    *,
    processes: int = 5,
    count: int = 20,
    calls: int = 4,
    noise: float = 0.05,
    between: float = 0.002,
    flags: float = 0.0,
    cpu: Mapping[str, float] | None = None,
    cell: Cell = CELL,
    seed: int = 0,
) -> list[Block]:
    """Calls of 10 ms times the arm's factor, log-normal; ``between``: spread of an arm's processes.

    Args:
        flags: share of interrupted samples.
        cpu: other factors of the CPU time.
    """
    generator = np.random.default_rng(seed)
    found = []
    for process in range(processes):
        offsets = {arm: generator.normal(0, between) for arm in factors}
        for number in range(count):
            turns = order(list(factors), seed=seed, cell=cell.id, replicate=process, number=number)
            parts = [
                _slice(arm, place, factors, cpu, offsets[arm], calls, noise, flags, generator)
                for place, arm in enumerate(turns)
            ]
            found.append(
                Block(
                    id=f"{process}-{number}",
                    cell=cell.id,
                    replicate=process,
                    number=number,
                    process=process,
                    order=turns,
                    slices=parts,
                )
            )
    return found


def _slice(
    arm: str,
    place: int,
    factors: Mapping[str, float],
    cpu: Mapping[str, float] | None,
    offset: float,
    calls: int,
    noise: float,
    flags: float,
    generator: np.random.Generator,
) -> Slice:
    wall = 10 * factors[arm] * np.exp(offset + generator.normal(0, noise, calls))
    spent = 10 * (cpu or factors)[arm] * np.exp(offset + generator.normal(0, noise / 5, calls))
    return Slice(
        arm=arm,
        position=place,
        wall_ms=wall.tolist(),
        cpu_ms=spent.tolist(),
        flags=(generator.random(calls) < flags).astype(int).tolist(),
        tokens=[16] * calls,
    )


def shuffled(items: Sequence[Block], seed: int = 0) -> list[Block]:
    """The blocks in another order."""
    return [items[number] for number in np.random.default_rng(seed).permutation(len(items))]
