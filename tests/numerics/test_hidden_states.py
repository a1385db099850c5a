"""Losses between the insides of two models against values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from compresskit.numerics.hidden_states import head_scores, mean_square_loss, relation_loss, score_loss, unit_loss


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize(
    ("student", "teacher", "square", "unit"),
    [
        ([[1.0, 0.0]], [[0.0, 2.0]], (1 + 4) / 2, 2.0),
        ([[3.0, 4.0]], [[6.0, 8.0]], (9 + 16) / 2, 0.0),
        ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]], 4 / 4, (0 + 4) / 2),
    ],
)
def test_states(student: list[list[float]], teacher: list[list[float]], square: float, unit: float) -> None:
    s, t = torch.tensor(student), torch.tensor(teacher)
    assert mean_square_loss(s, t) == pytest.approx(square)
    assert unit_loss(s, t) == pytest.approx(unit)


def test_scores_are_scaled_by_the_width_of_a_head() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert head_scores(x, x, 1).tolist() == [[[30 / 2]]]
    two = head_scores(x, x, 2).flatten().tolist()
    assert two == pytest.approx([5 / math.sqrt(2), 25 / math.sqrt(2)])


@pytest.mark.parametrize("causal", [False, True])
def test_relations_of_two_tokens(causal: bool) -> None:
    """Width 1: the teacher (ln 2, 0) has scores ((ln² 2, 0), (0, 0)); the student (0, 0) has none."""
    two = math.log(2)
    teacher, student = torch.tensor([[two], [0.0]]), torch.zeros(2, 1)
    power = math.exp(two * two)
    first = kl([power / (power + 1), 1 / (power + 1)], [0.5, 0.5])
    found = relation_loss((student, student), (teacher, teacher), 1, causal=causal)
    assert found == pytest.approx(0.0 if causal else first / 2)


def test_relations_of_a_pair_and_a_wider_student() -> None:
    """Q = (1, 0), K = (ln 3, 0): rows (ln 3, 0) -> (3/4, 1/4) and (0, 0); the student of width 2 has none."""
    teacher = torch.tensor([[1.0], [0.0]]), torch.tensor([[math.log(3)], [0.0]])
    student = torch.zeros(2, 2), torch.zeros(2, 2)
    assert relation_loss(student, teacher, 1) == pytest.approx(kl([0.75, 0.25], [0.5, 0.5]) / 2)


def test_scores_of_two_tokens() -> None:
    teacher, student = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    assert score_loss((student, student), (teacher, teacher), 1) == pytest.approx((1 + 4 + 4 + 16) / 4)
    assert score_loss((student, student), (teacher, teacher), 1, causal=True) == pytest.approx((1 + 4 + 16) / 3)
