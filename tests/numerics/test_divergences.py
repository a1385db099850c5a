"""Divergences against values worked by hand, against plain loops in float64, and at their limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compresskit.numerics.divergences import FLOOR, bucketed, generalized_jsd, kl, mixture, skew_kl, sorted_distance

QUARTER = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
HALF = torch.tensor([[0.5, 0.5]], dtype=torch.float64)


def random_logs(rows: int = 5, classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return logits[0].log_softmax(-1), logits[1].log_softmax(-1)


def looped(p: Tensor, q: Tensor) -> list[float]:
    """KL of each row, number by number."""
    return [
        sum(a * math.log(a / b) for a, b in zip(row_p, row_q, strict=True) if a > 0)
        for row_p, row_q in zip(p.exp().tolist(), q.exp().tolist(), strict=True)
    ]


def test_kl_by_hand_in_both_directions() -> None:
    forward = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    reverse = 0.5 * math.log(2.0) + 0.5 * math.log(2 / 3)
    assert kl(QUARTER.log(), HALF.log()).tolist() == pytest.approx([forward])
    assert kl(HALF.log(), QUARTER.log()).tolist() == pytest.approx([reverse])
    assert forward != pytest.approx(reverse, rel=0.05)


def test_kl_of_many_rows_equals_a_loop() -> None:
    p, q = random_logs()
    assert kl(p, q).tolist() == pytest.approx(looped(p, q), rel=1e-12)


def test_skew_kl_by_hand() -> None:
    # α = 0.2: the mixture of (1/4, 3/4) and (1/2, 1/2) is (0.45, 0.55).
    expected = 0.25 * math.log(0.25 / 0.45) + 0.75 * math.log(0.75 / 0.55)
    assert skew_kl(QUARTER.log(), HALF.log(), 0.2).tolist() == pytest.approx([expected])
    # The reverse: the student first, (0.3, 0.7) at α = 0.8 for the second.
    expected = 0.5 * math.log(0.5 / 0.45) + 0.5 * math.log(0.5 / 0.55)
    assert skew_kl(HALF.log(), QUARTER.log(), 0.8).tolist() == pytest.approx([expected])


def test_skew_kl_is_kl_at_zero_and_bounded_elsewhere() -> None:
    p, q = random_logs()
    assert torch.equal(skew_kl(p, q, 0), kl(p, q))
    torch.testing.assert_close(skew_kl(p, q, 1e-9), kl(p, q), rtol=1e-5, atol=0)
    apart = torch.tensor([[1.0, 0.0]]).double().log(), torch.tensor([[0.0, 1.0]]).double().log()
    assert skew_kl(*apart, 0.1).tolist() == pytest.approx([-math.log(0.1)])


def test_jsd_by_hand() -> None:
    # β = 1/2 between (1/4, 3/4) and (1/2, 1/2): m = (3/8, 5/8).
    left = 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
    right = 0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)
    found = generalized_jsd(QUARTER.log(), HALF.log(), 0.5, rescale=False)
    assert found.tolist() == pytest.approx([(left + right) / 2])
    assert generalized_jsd(QUARTER.log(), HALF.log(), 0.5).tolist() == pytest.approx([2 * (left + right)])


def test_jsd_as_its_definition_says() -> None:
    p, q = random_logs()
    for beta in (0.1, 0.3, 0.9):
        m = (beta * p.exp() + (1 - beta) * q.exp()).log()
        expected = [beta * a + (1 - beta) * b for a, b in zip(looped(p, m), looped(q, m), strict=True)]
        assert generalized_jsd(p, q, beta, rescale=False).tolist() == pytest.approx(expected, rel=1e-12)
        rescaled = [value / (beta * (1 - beta)) for value in expected]
        assert generalized_jsd(p, q, beta).tolist() == pytest.approx(rescaled, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_limits_of_the_rescaled_jsd_are_the_two_kls(dtype: torch.dtype) -> None:
    p, q = (side.to(dtype) for side in random_logs())
    assert torch.equal(generalized_jsd(p, q, 0), kl(p, q))
    assert torch.equal(generalized_jsd(p, q, 1), kl(q, p))
    distances = []
    for beta in (1e-3, 1e-5, 1e-7):
        ends = generalized_jsd(p, q, beta) - kl(p, q), generalized_jsd(p, q, 1 - beta) - kl(q, p)
        distances.append(max(float(end.abs().max()) for end in ends))
    assert distances[1] < distances[0] / 20
    assert distances[2] < 1e-4


def test_without_rescaling_the_jsd_is_a_hundred_times_weaker_near_its_end() -> None:
    p, q = random_logs()
    ratio = generalized_jsd(p, q, 0.01, rescale=False) / kl(p, q)
    assert float(ratio.max()) < 0.011
    assert generalized_jsd(p, q, 0, rescale=False).tolist() == [0.0] * 5


@pytest.mark.parametrize(
    "loss",
    [
        kl,
        lambda p, q: kl(q, p),
        lambda p, q: skew_kl(p, q, 0.1),
        lambda p, q: skew_kl(q, p, 0.1),
        *(lambda p, q, beta=beta: generalized_jsd(p, q, beta) for beta in (0.0, 0.001, 0.5, 0.999, 1.0)),
    ],
)
def test_equal_distributions_give_no_loss_and_no_gradient(loss: object) -> None:
    logits = random_logs()[0].requires_grad_()
    found = loss(logits.detach().log_softmax(-1), logits.log_softmax(-1))  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert float(found.detach().abs().max()) < 1e-12
    assert float(gradient.abs().max()) < 1e-12


def test_gradients_are_those_of_finite_differences() -> None:
    p, q = random_logs(2, 4)
    for loss in (
        lambda z: kl(p[:2, :4].log_softmax(-1), z.log_softmax(-1)),
        lambda z: kl(z.log_softmax(-1), p[:2, :4].log_softmax(-1)),
        lambda z: skew_kl(z.log_softmax(-1), p[:2, :4].log_softmax(-1), 0.1),
        lambda z: generalized_jsd(p[:2, :4].log_softmax(-1), z.log_softmax(-1), 0.3),
        lambda z: sorted_distance(p[:2, :4].softmax(-1), z.softmax(-1)),
    ):
        assert torch.autograd.gradcheck(loss, (q[:2, :4].clone().requires_grad_(),))


def test_probabilities_of_zero_are_no_trouble() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0]], requires_grad=True)
    other = torch.tensor([[0.0, -torch.inf, -torch.inf]]).log_softmax(-1)
    for loss in (kl(other, logits.log_softmax(-1)), generalized_jsd(other, logits.log_softmax(-1), 0.5)):
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert bool(torch.isfinite(loss).all() and torch.isfinite(gradient).all())
    certain = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.0, 1.0]]).log()
    assert kl(*certain).tolist() == [-FLOOR]


def test_sorted_distance_by_hand_and_with_vocabularies_of_other_sizes() -> None:
    p = torch.tensor([[0.1, 0.6, 0.3]], dtype=torch.float64)
    q = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    # sorted: (0.6, 0.3, 0.1) and (0.5, 0.5, 0)
    assert sorted_distance(p, q).tolist() == pytest.approx([0.1 + 0.2 + 0.1])
    assert sorted_distance(q, p).tolist() == pytest.approx([0.4])


def test_sorted_distance_knows_no_order_of_the_words() -> None:
    p, q = (side.exp() for side in random_logs())
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sorted_distance(p[:, order], q), sorted_distance(p, q))
    assert torch.equal(sorted_distance(p, q[:, order]), sorted_distance(p, q))
    assert sorted_distance(p, p[:, order]).tolist() == [0.0] * 5


def test_buckets_by_hand() -> None:
    log_p = torch.tensor([[0.1, 0.6, 0.2, 0.1]], dtype=torch.float64).log()
    found = bucketed(log_p, torch.tensor([[1, 2]])).exp()
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.2, 0.2]], dtype=torch.float64))


def test_a_bucket_for_the_rest_loses_divergence_but_never_makes_any() -> None:
    p, q = random_logs(20, 9)
    whole, before = kl(p, q), torch.zeros(20, dtype=torch.float64)
    for count in (1, 3, 6, 8):
        index = p.topk(count).indices
        found = kl(bucketed(p, index), bucketed(q, index))
        assert bool((found <= whole + 1e-12).all() and (found >= before - 1e-12).all())
        before = found
    # With one class left out the bucket holds that class alone.
    torch.testing.assert_close(before, whole)


def test_mixture_by_hand_and_of_one() -> None:
    found = mixture([QUARTER.log(), HALF.log()], [0.25, 0.75]).exp()
    torch.testing.assert_close(found, torch.tensor([[0.4375, 0.5625]], dtype=torch.float64))
    assert torch.equal(mixture([QUARTER.log()], [1.0]), QUARTER.log())
