from __future__ import annotations

import torch
from torch import Tensor

from compresskit.numerics import awq
from compresskit.numerics.gptq import output_error
from compresskit.numerics.rtn import Codes, quantize


def rounding(weight: Tensor, importance: Tensor, thorough: bool = True) -> Codes:
    return quantize(weight, 3, 16, search=thorough, importance=importance)


def inputs(count: int, seed: int = 0) -> Tensor:
    """Rows of which a few features are far larger than others."""
    rows = torch.randn(count, 64, generator=torch.Generator().manual_seed(seed))
    rows[:, ::16] *= 12
    return rows


def weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, 64, generator=generator) for size in (32, 8)]


def test_better_than_rounding_on_inputs_that_it_has_not_seen() -> None:
    seen, fresh = inputs(300), inputs(200, seed=1)
    found = awq.search(weights(), seen.T @ seen, seen.abs().mean(0), rounding)
    assert found.alpha > 0
    assert found.scale is not None
    assert found.error < found.plain_error
    gram = fresh.T @ fresh
    for weight, codes in zip(weights(), found.codes, strict=True):
        better = output_error(codes.values() / found.scale - weight, gram)
        assert better < 0.9 * output_error(quantize(weight, 3, 16).values() - weight, gram)


def test_scales_cancel_before_rounding() -> None:
    seen = inputs(20).double()
    scale = awq.column_scale(seen.abs().mean(0), 0.5).double()
    weight = weights()[0].double()
    torch.testing.assert_close((seen / scale) @ (weight * scale).T, seen @ weight.T)


def test_alpha_zero_is_round_to_nearest() -> None:
    seen = torch.ones(10, 64)
    found = awq.search(weights(), seen.T @ seen, seen.abs().mean(0), rounding)
    assert found.scale is None
    assert found.error == found.plain_error
    assert torch.equal(found.codes[0].codes, rounding(weights()[0], torch.ones(64)).codes)


def test_inputs_that_never_occur() -> None:
    seen = inputs(50)
    seen[:, 3] = 0
    scale = awq.column_scale(seen.abs().mean(0), 0.7)
    assert float(scale[3]) == 1
    assert bool(scale.isfinite().all())
    assert torch.equal(awq.column_scale(torch.zeros(5), 0.5), torch.ones(5))
    found = awq.search(weights(), torch.zeros(64, 64), torch.zeros(64), rounding)
    assert bool(found.codes[0].values().isfinite().all())
