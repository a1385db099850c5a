"""Records made of simulated blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compresskit.bench.analysis import metrics_of
from compresskit.bench.comparisons import compare_arms
from compresskit.bench.record import Arm, Environment, Metric, ModelInfo, Plan, Quality, Record
from tests.bench.fake import CELL, blocks

CPU = {"model": "x", "logical": 2, "physical": 2, "architecture": "x86_64", "flags": "f"}


def make(
    factors: Mapping[str, float],
    *,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    quality: Mapping[str, Quality] | None = None,
    cpu: Mapping[str, Any] | None = None,
    **more: Any,
) -> Record:
    """A record of one cell; the first arm is the baseline, the others candidates."""
    made = blocks(factors, seed=seed, **more)
    names = list(factors)
    comparisons, noise = compare_arms(made, [CELL], names[0], None, names[1:], headline=CELL.id)
    arms = [
        Arm(
            name=name,
            role="baseline" if name == names[0] else "candidate",
            model=ModelInfo(source=name),
            metrics={"size.served": Metric(value=(sizes or {}).get(name, 1000), unit="bytes")},
            cells={CELL.id: metrics_of(made, CELL, name)},
            quality=(quality or {}).get(name),
        )
        for name in names
    ]
    return Record(
        complete=True,
        created="2026-01-01",
        env=Environment(hash="h", cpu={**CPU, **(cpu or {})}, noise=noise),
        plan=Plan(profile="quick", cells=[CELL], headline=CELL.id),
        arms=arms,
        comparisons=comparisons,
        blocks=made,
    )
