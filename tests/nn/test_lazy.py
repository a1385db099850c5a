from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5DenseActDense

from compresskit.nn import int8, low_rank
from compresskit.nn.lazy import lazy


class Counted:
    def __init__(self) -> None:
        self.value, self.times = torch.randn(3, 4, requires_grad=True), 0

    def __call__(self) -> Tensor:
        self.times += 1
        return self.value * 2

    def matrix(self) -> Tensor:
        return lazy(self, (3, 4), torch.float32, torch.device("cpu"))


def test_facts_compute_nothing() -> None:
    counted = Counted()
    matrix = counted.matrix()
    assert isinstance(matrix, Tensor)
    assert (matrix.dtype, matrix.device, matrix.shape, matrix.ndim) == (
        torch.float32,
        torch.device("cpu"),
        torch.Size([3, 4]),
        2,
    )
    assert counted.times == 0


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m + 1,
        lambda m: 1 - m,
        lambda m: torch.eye(3) @ m,
        lambda m: nn.functional.linear(torch.ones(2, 4), m),
        lambda m: m[1:, 2],
        lambda m: m.T.contiguous(),
        lambda m: m.detach().numpy(),
        lambda m: m.data,
        lambda m: m.tolist(),
        lambda m: m.to(torch.bfloat16),
        lambda m: torch.stack([m, m]),
        lambda m: m.detach().clone().data_ptr() > 0,
        lambda m: copy.deepcopy(m.detach()),
        repr,
    ],
)
def test_every_other_use_is_that_of_the_matrix(use: object) -> None:
    counted = Counted()
    found, expected = use(counted.matrix()), use(counted.value * 2)  # type: ignore[operator]
    assert counted.times > 0
    assert type(found) is type(expected)
    same = (
        torch.equal if isinstance(found, Tensor) else lambda one, other: (one == other) is True or (one == other).all()
    )
    assert same(found, expected)


def test_gradients_reach_what_it_is_built_from() -> None:
    counted = Counted()
    (counted.matrix() * 3).sum().backward()
    assert torch.equal(counted.value.grad, torch.full((3, 4), 6.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["int8", "low rank"])
def test_t5_does_not_compute_the_matrix_to_learn_its_dtype(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    feed_forward = T5DenseActDense(T5Config(d_model=16, d_ff=48)).eval()
    if kind == "int8":
        feed_forward.wo = int8.Int8Linear.from_weight(torch.randn(16, 48), None)
    else:
        feed_forward.wo = low_rank.LowRankLinear.from_factors(torch.randn(16, 4), torch.randn(4, 48), None)

    def refuse(*arguments: object) -> Tensor:
        raise AssertionError("computed")

    module = int8 if kind == "int8" else low_rank
    monkeypatch.setattr(module, "lazy", lambda build, *facts: lazy(refuse, *facts))
    with torch.no_grad():
        assert feed_forward(torch.randn(2, 16)).shape == (2, 16)
    with pytest.raises(AssertionError, match="computed"):
        feed_forward.wo.weight + 1
