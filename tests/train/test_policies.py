"""Temperature policies: one signature, each its rule, and the default that goes by the teacher's softness."""

from __future__ import annotations

import math

import pytest
import torch

from compresskit.numerics.dynamic_distillation import dynamic_loss
from compresskit.numerics.temperatures import entropy
from compresskit.train.policies import POLICIES, Annealed, Band, BySoftness, Curriculum, Exponential, Fixed

Z = 3 * torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
S = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_gives_positive_finite_temperatures(name: str) -> None:
    policy = POLICIES[name]().prepare(Z)
    for progress in (0.0, 0.5, 1.0):
        for found in policy(Z, S, progress):
            assert found.shape == (40,)
            assert (found > 0).all()
            assert found.isfinite().all()


def test_fixed() -> None:
    assert [float(t[0]) for t in Fixed(3.0)(Z, S)] == [3.0, 3.0]
    assert [float(t[0]) for t in Fixed(0.5, 1.0)(Z, S)] == [0.5, 1.0]


def test_automatic_k_is_settled_on_all_targets_not_on_a_batch() -> None:
    prepared = Exponential().prepare(Z)
    assert prepared.k == pytest.approx(math.log(2) / float(entropy(Z).median()))
    assert torch.equal(prepared(Z[:3], S[:3])[0], prepared(Z, S)[0][:3])


def test_annealing_ends_at_one() -> None:
    assert [float(Annealed(5.0)(Z, S, share)[0][0]) for share in (0, 0.5, 1)] == [5, 3, 1]


def test_the_default_goes_by_the_median_entropy() -> None:
    rule = BySoftness(0.5)
    assert isinstance(rule.prepare(0.01 * Z), Band)
    assert isinstance(rule.prepare(10 * Z), Exponential)
    mask = torch.arange(40) < 20
    mixed = torch.cat([10 * Z[:20], 0.01 * Z[20:]])
    assert isinstance(rule.prepare(mixed, mask), Exponential)
    assert isinstance(rule.prepare(mixed, ~mask), Band)


def test_the_curriculum_makes_it_harder() -> None:
    policy = Curriculum(lr=1.0)
    losses = []
    for _ in range(20):
        temperatures = policy(Z, S, 1.0)
        loss = dynamic_loss(S, Z, None, *temperatures, 1.0)
        loss.backward()
        policy.advance()
        losses.append(loss.item())
    assert losses[-1] > losses[0], "its temperature climbs the loss that a student descends"


def test_the_curriculum_begins_without_any_weight() -> None:
    policy = Curriculum()
    dynamic_loss(S, Z, None, *policy(Z, S, 0.0), 1.0).backward()
    before = policy.value.item()
    policy.advance()
    assert policy.value.item() == before
    assert policy.value.grad is None
