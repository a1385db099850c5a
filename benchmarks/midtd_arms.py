"""The arms that MiDTD is compared with, and what their targets look like."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from compresskit.numerics.temperatures import entropy, entropy_spread
from compresskit.train.policies import Band, BySoftness, Exponential, Fixed, Policy


@dataclass(frozen=True)
class Arm:
    """How a student is trained; without a policy, on labels alone."""

    name: str
    policy: Policy | None = None
    rho: float = 0.0
    key: str = "pair"
    alpha: float = 0.8
    squared: bool = False
    smoothing: float = 0.0

    def with_tuned(self, tuned: dict[str, Any]) -> Arm:
        """This arm with what was chosen on development data."""
        if self.name == "kd_tuned" and "kd" in tuned:
            chosen = TUNED_KD[tuned["kd"]]
            return replace(self, policy=chosen.policy, squared=chosen.squared, alpha=chosen.alpha)
        if isinstance(self.policy, BySoftness) and "band" in tuned:
            chosen = BANDS[tuned["band"]]
            return replace(self, policy=chosen.policy, alpha=chosen.alpha)
        return self


ARMS = {
    arm.name: arm
    for arm in (
        Arm("teacher"),
        Arm("default", BySoftness(), rho=0.5),
        Arm("ce_again"),
        Arm("kd", Fixed(1.0)),
        Arm("kd_tuned", Fixed(1.0)),
        Arm("dtr", BySoftness()),
        Arm("mitf", Fixed(1.0), rho=0.5),
        Arm("paper", Exponential(0.7, 0.45, 0.5), rho=0.5, key="pair+label"),
        Arm("label_smoothing", smoothing=0.1),
    )
}

TUNED_KD = {
    "T=1": ARMS["kd"],
    "T=0.5": Arm("T=0.5", Fixed(0.5), squared=True),
    "T=2": Arm("T=2", Fixed(2.0), squared=True),
    "T=4": Arm("T=4", Fixed(4.0), squared=True),
    "teacher T=0.5": Arm("teacher T=0.5", Fixed(0.5, 1.0)),
    "teacher T=0.3": Arm("teacher T=0.3", Fixed(0.3, 1.0)),
    "T=1, alpha 1": Arm("T=1, alpha 1", Fixed(1.0), alpha=1.0),
    "teacher T=0.3, alpha 1": Arm("teacher T=0.3, alpha 1", Fixed(0.3, 1.0), alpha=1.0),
}
"""Plain KD with T on both sides and its square as scale, or with T on the teacher's side alone."""

BANDS = {
    name: Arm(name, BySoftness(soft=Band(low, high)), rho=0.5, alpha=alpha)
    for name, low, high, alpha in (
        ("0.05-0.3", 0.05, 0.3, 0.8),
        ("0.05-0.5", 0.05, 0.5, 0.8),
        ("0.05-0.3, alpha 1", 0.05, 0.3, 1.0),
        ("0.02-0.15", 0.02, 0.15, 0.8),
        ("0.02-0.15, alpha 1", 0.02, 0.15, 1.0),
    )
}


def entropies(policy: Policy, targets: torch.Tensor) -> dict[str, float]:
    """5th, 50th and 95th percentile of the targets' entropy at the temperatures of ``policy``, in nats."""
    prepared = policy.prepare(targets)
    teacher, _ = prepared(targets, targets)
    return {name: round(value, 4) for name, value in entropy_spread(targets, teacher).items()}


def fixed_of_equal_median(policy: Policy, targets: torch.Tensor) -> dict[str, float]:
    """The one temperature under which the targets' median entropy is that under ``policy``, and the spread under it.

    A high enough temperature makes any spread as narrow as one likes; at an equal median the two rules are comparable.
    """
    teacher, _ = policy.prepare(targets)(targets, targets)
    wanted = float(entropy(targets, teacher).median())
    low, high = 1e-2, 1e2
    for _ in range(40):
        middle = (low * high) ** 0.5
        short = float(entropy(targets, middle).median()) < wanted
        low, high = (middle, high) if short else (low, middle)
    chosen = (low * high) ** 0.5
    found = {name: round(value, 4) for name, value in entropy_spread(targets, chosen).items()}
    return {"temperature": round(chosen, 4), **found}
