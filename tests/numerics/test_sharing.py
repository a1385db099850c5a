from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compresskit.numerics import sharing


def test_patterns() -> None:
    assert sharing.cyclic(6, 2) == [[0, 2, 4], [1, 3, 5]]
    assert sharing.cyclic(5, 3) == [[0, 3], [1, 4], [2]]
    assert sharing.immediate(6, 3) == [[0, 1], [2, 3], [4, 5]]
    assert sharing.immediate(5, 2) == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize("pattern", [sharing.cyclic, sharing.immediate])
@given(layers=st.integers(1, 50), distinct=st.integers(1, 60))
def test_every_layer_is_in_one_group(
    pattern: Callable[[int, int], list[list[int]]], layers: int, distinct: int
) -> None:
    groups = pattern(layers, distinct)
    assert len(groups) == min(layers, distinct)
    assert sorted(layer for group in groups for layer in group) == list(range(layers))
    sizes = {len(group) for group in groups}
    assert max(sizes) - min(sizes) <= 1


def test_mean_is_summed_in_double_precision() -> None:
    parts = [torch.full((3,), value, dtype=torch.float16) for value in (60000.0, 60000.0, 30000.0)]
    found = sharing.mean(parts)
    assert found.dtype == torch.float16
    assert found.tolist() == [49984.0] * 3, (
        "their sum is beyond the range of float16; 50,000 lies between two of its values"
    )


def test_disagreement() -> None:
    layer = torch.randn(40, 50)
    assert sharing.disagreement([[layer, layer.clone()]]) == 0
    for count in (2, 5):
        unrelated = [torch.randn(200, 200) for _ in range(count)]
        assert sharing.disagreement([unrelated]) == pytest.approx((1 - 1 / count) ** 0.5, abs=0.01)
    assert sharing.disagreement([[layer, -layer]]) == pytest.approx(1)
    assert sharing.disagreement([[torch.zeros(3), torch.zeros(3)]]) == 0
    assert sharing.disagreement([]) == 0
