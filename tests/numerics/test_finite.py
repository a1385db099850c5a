"""Values that aren't finite are found wherever they lie."""

from __future__ import annotations

import pytest
import torch

from compresskit.numerics import finite
from compresskit.numerics.finite import all_finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 6, 7, 13])
def test_a_bad_value_in_any_piece_is_found(bad: float, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "_PIECE", 4)
    values = torch.ones(2, 7)
    assert all_finite(values)
    values.view(-1)[place] = bad
    assert not all_finite(values)
    assert not all_finite(values.T)
    assert not all_finite(values.to(torch.bfloat16))


def test_any_type_and_no_value_at_all() -> None:
    assert all_finite(torch.tensor(3))
    assert all_finite(torch.zeros(0, 4))
    assert all_finite(torch.ones(3).to(torch.float8_e4m3fn))
    assert not all_finite(torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn))
