"""MiTF: identities, bags, weights, spaces, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from compresskit.numerics.fusion import fuse_targets, group_numbers


def logits(rows: int = 12, classes: int = 5, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KEYS = ["a", "b", "a", "c", "d", "d", "d", "a", "e", "b", "f", "d"]


@pytest.mark.parametrize("space", ["logit", "prob"])
@pytest.mark.parametrize("weights", ["mean", "confidence", "attention"])
def test_bags_of_one_and_no_share_are_bit_equal(weights: str, space: str) -> None:
    z, labels = logits(), torch.zeros(12, dtype=torch.int64)
    for keys, rho in ((range(12), 0.5), (KEYS, 0.0), (None, 0.5)):
        fused = fuse_targets(z, keys, rho, weights, space, labels=labels)  # type: ignore[arg-type]
        assert torch.equal(fused, z)


@pytest.mark.parametrize("weights", ["mean", "confidence", "attention"])
def test_with_all_the_share_a_bag_is_one(weights: str) -> None:
    fused = fuse_targets(logits(), KEYS, 1.0, weights, labels=torch.arange(12) % 5)  # type: ignore[arg-type]
    for key in "abd":
        rows = fused[[row for row, other in enumerate(KEYS) if other == key]]
        assert torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-12)


@pytest.mark.parametrize("weights", ["mean", "confidence", "attention"])
def test_the_order_of_rows_is_irrelevant(weights: str) -> None:
    z, labels = logits(), torch.arange(12) % 5
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    straight = fuse_targets(z, KEYS, 0.5, weights, labels=labels)  # type: ignore[arg-type]
    mixed = fuse_targets(z[order], [KEYS[i] for i in order], 0.5, weights, labels=labels[order])  # type: ignore[arg-type]
    assert torch.allclose(mixed, straight[order], atol=1e-12)


@pytest.mark.parametrize("weights", ["mean", "confidence", "attention"])
def test_a_constant_added_to_a_row_changes_nothing(weights: str) -> None:
    z, labels = logits(), torch.arange(12) % 5
    shifted = z + torch.linspace(-50, 50, 12, dtype=torch.float64).unsqueeze(1)
    first, second = (fuse_targets(x, KEYS, 0.5, weights, labels=labels).softmax(-1) for x in (z, shifted))  # type: ignore[arg-type]
    assert torch.allclose(first, second, atol=1e-10)


def test_by_hand() -> None:
    z = torch.tensor([[2.0, 0.0], [0.0, 4.0], [1.0, 1.0]])
    fused = fuse_targets(z, ["p", "p", "q"], 0.5)
    # The bag's mean is (1, 2); halfway to it from (2, 0) is (1.5, 1), from (0, 4) it is (0.5, 3).
    assert torch.allclose(fused, torch.tensor([[1.5, 1.0], [0.5, 3.0], [1.0, 1.0]]))


def test_confidence_by_hand() -> None:
    z = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    entropies = [-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), math.log(2.0)]
    powers = [math.exp(-value) for value in entropies]
    expected = powers[0] / sum(powers) * math.log(3.0)
    assert fuse_targets(z, [1, 1], 1.0, "confidence")[1, 0] == pytest.approx(expected, abs=1e-6)


def test_attention_by_hand() -> None:
    z = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    # p[y] is 3/4 and 1/2, so the weights are 3/5 and 2/5.
    fused = fuse_targets(z, [1, 1], 1.0, "attention", labels=torch.tensor([0, 0]))
    assert fused[0, 0] == pytest.approx(0.6 * math.log(3.0), abs=1e-6)


def test_probabilities_by_hand() -> None:
    z = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    p = fuse_targets(z, [1, 1], 0.5, space="prob").softmax(-1)
    assert torch.allclose(p, torch.tensor([[0.6875, 0.3125], [0.5625, 0.4375]]))


def test_large_logits_and_half_precision_stay_finite() -> None:
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    for dtype in (torch.float32, torch.float16):
        for space in ("logit", "prob"):
            assert fuse_targets(z.to(dtype), [0, 0], 0.5, space=space).float().softmax(-1).isfinite().all()  # type: ignore[arg-type]


def test_refusals() -> None:
    z = logits(3)
    for keys in (["a", "", "b"], ["a", None, "b"], ["a", "  ", "b"]):
        with pytest.raises(ValueError, match="row 1 is empty"):
            fuse_targets(z, keys)
    with pytest.raises(ValueError, match="2 bag keys for 3 rows"):
        fuse_targets(z, ["a", "b"])
    with pytest.raises(ValueError, match="share"):
        fuse_targets(z, ["a", "b", "c"], 1.5)
    with pytest.raises(ValueError, match="labels"):
        fuse_targets(z, ["a", "a", "c"], 0.5, "attention")
    with pytest.raises(ValueError, match="N, C"):
        fuse_targets(z[0], ["a"])


def test_numbers_of_groups() -> None:
    assert group_numbers(["x", "y", "x", ("z", 1)]).tolist() == [0, 1, 0, 2]
    assert group_numbers(torch.tensor([7, 7, 3])).tolist() == [0, 0, 1]
