from __future__ import annotations

import torch

from compresskit.numerics import fp8


def test_the_table_is_the_format() -> None:
    values = fp8.table()
    assert len(values) == 253, "256 codes without two NaN and -0"
    assert float(values[-1]) == fp8.LARGEST == torch.finfo(fp8.TYPE).max
    everything = torch.arange(256, dtype=torch.uint8).view(fp8.TYPE).double()
    assert torch.equal(everything[everything.isfinite()].unique(), values)


def test_rounded_to_the_nearest_of_the_table_and_never_nan() -> None:
    x = torch.cat([torch.randn(2000) * 60, torch.tensor([0.0, 1e-9, 463.0, 464.5, 1e30, -1e30])])
    values, found = fp8.table(), fp8.to_float8(x).double()
    distance = (found - x.double()).abs()
    nearest = (values[None] - x.double()[:, None]).abs().amin(1)
    torch.testing.assert_close(distance, nearest, rtol=0, atol=0)


def test_scales_by_row_or_matrix() -> None:
    weight = torch.randn(24, 40) * torch.logspace(-6, 3, 24)[:, None]
    weight[3] = 0
    for whole in (False, True):
        codes, scale = fp8.quantize(weight, whole=whole)
        assert (codes.dtype, scale.shape) == (fp8.TYPE, (1, 1) if whole else (24, 1))
        again, same = fp8.quantize(fp8.dequantize(codes, scale), whole=whole)
        assert torch.equal(again.float(), codes.float()), "what is representable stays"
        torch.testing.assert_close(same, scale)
    codes, scale = fp8.quantize(weight)
    error = (fp8.dequantize(codes, scale) - weight).abs()
    assert bool((error <= weight.abs() / 16 + scale * 2.0**-10 * 1.0001).all()), "half a step of mantissa or subnormal"
    assert torch.equal(fp8.dequantize(codes, scale)[3], torch.zeros(40))


def test_products_of_8_bit_floats() -> None:
    x, weight = torch.randn(5, 32) * torch.logspace(-3, 3, 5)[:, None], torch.randn(48, 32)
    x[2] = 0
    codes, scale = fp8.quantize(weight)
    found, dense = fp8.linear(x, codes, scale), x @ fp8.dequantize(codes, scale).T
    own, rows = fp8.quantize(x)
    torch.testing.assert_close(found, fp8.dequantize(own, rows) @ fp8.dequantize(codes, scale).T, rtol=1e-5, atol=1e-5)
    assert float((found - dense).norm() / dense.norm()) < 0.05
    assert torch.equal(found[2], torch.zeros(48))


def test_rows_below_the_smallest_scale_are_zeros() -> None:
    codes, scale = fp8.quantize(torch.randn(16, 16))
    x = torch.zeros(2, 16)
    x[0, 3] = 1e-44
    assert not fp8.linear(x, codes, scale).any()
