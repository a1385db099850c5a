from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from compresskit.numerics import lookup
from compresskit.numerics.rtn import quantize


def weights(rows: int = 32, columns: int = 128, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def error(found: lookup.Lookup, weight: Tensor) -> float:
    return float((found.values() - weight).square().sum())


def test_normal_float_has_the_levels_of_the_source() -> None:
    published = [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0]
    published += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
    torch.testing.assert_close(lookup.normal_float(4), torch.tensor(published), rtol=0, atol=1e-4)
    assert len(lookup.normal_float(3)) == 8


@pytest.mark.parametrize("group", [16, 128])
def test_normal_float_takes_the_nearest_level(group: int) -> None:
    weight, levels = weights(6), lookup.normal_float(4)
    found = lookup.by_absmax(weight, levels, group)
    for row in range(6):
        for start in range(0, 128, group):
            part = weight[row, start : start + group].double()
            largest = part.abs().max()
            codes = (part[:, None] / largest - levels.double()).abs().argmin(1)
            assert torch.equal(found.codes[row, start : start + group].long(), codes)
            assert float(found.scale[row, start // group]) == pytest.approx(float(largest))  # type: ignore[index]


def test_normal_float_suits_normal_weights() -> None:
    weight = weights()
    plain = quantize(weight, 4, 64, search=False).values() - weight
    assert error(lookup.by_absmax(weight, lookup.normal_float(4), 64), weight) < float(plain.square().sum())


def test_zeros_stay_zeros() -> None:
    weight = weights()
    weight[3] = 0
    for found in (
        lookup.by_absmax(weight, lookup.normal_float(4), 64),
        lookup.binary(weight),
        lookup.ternary(weight),
        lookup.codebook(torch.zeros(2, 8), 4),
    ):
        values = found.values()
        assert bool(values.isfinite().all())
        assert values.shape[0] == 2 or bool((values[3] == 0).all())


def test_scales_in_eight_bits() -> None:
    scale = torch.rand(10, 60, generator=torch.Generator().manual_seed(0)) + 0.01
    codes, step, offset = lookup.double_quantized(scale, 256)
    assert len(step) == len(offset) == 3
    back = lookup.scales_of(codes, step, offset, 256)
    assert float((back - scale).abs().max()) <= 0.51 * float(step.max())
    assert float(back.min()) > 0
    equal = torch.full((2, 3), 0.25)
    assert torch.equal(lookup.scales_of(*lookup.double_quantized(equal, 256), 256), equal)


def test_binary_is_the_best_of_its_kind() -> None:
    weight = weights()
    found = lookup.binary(weight)
    assert found.scale is not None
    assert torch.equal(found.values().sign(), torch.where(weight >= 0, 1.0, -1.0))
    for share in (0.9, 0.99, 1.01, 1.1):
        assert error(lookup.Lookup(found.codes, found.levels, found.scale * share), weight) > error(found, weight)
    finer = lookup.binary(weight, 16)
    assert error(finer, weight) < error(found, weight)


def test_ternary_follows_its_rule_and_beats_signs() -> None:
    weight = weights()
    found = lookup.ternary(weight)
    for row, value in enumerate(weight.double()):
        limit = 0.7 * value.abs().mean()
        kept = value.abs() > limit
        expected = torch.where(kept, value.sign() * value.abs()[kept].mean(), torch.zeros_like(value))
        torch.testing.assert_close(found.values()[row].double(), expected)
    assert error(found, weight) < error(lookup.binary(weight), weight)


@pytest.mark.parametrize("levels", [2, 3])
def test_scales_that_move_the_loss_least(levels: int) -> None:
    """No other scale, and for three levels no other choice of zeros at it, has a smaller weighted error."""
    torch.manual_seed(0)
    parts, curvature = torch.randn(3, 2, 8, dtype=torch.float64), torch.rand(3, 2, 8, dtype=torch.float64)

    def error(signs: Tensor, scale: Tensor) -> Tensor:
        return (curvature * (parts - signs * scale).square()).sum(-1)

    choose = lookup.two_signs if levels == 2 else partial(lookup.three_signs, rounds=50)
    signs, scale = choose(parts, curvature=curvature)
    least = error(signs, scale)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (error(signs, scale * factor) >= least).all()
    plain_signs, plain_scale = choose(parts)
    assert (error(plain_signs, plain_scale) >= least - 1e-12).all()
    for place in range(8):
        for other in (-1.0, 1.0) if levels == 2 else (-1.0, 0.0, 1.0):
            moved = signs.clone()
            moved[..., place] = other
            assert (error(moved, scale) >= least - 1e-12).all()
    same = choose(parts, curvature=torch.ones_like(parts))
    if levels == 2:
        assert torch.equal(same[1], plain_scale)


def kmeans_oracle(values: list[float], levels: list[float], steps: int) -> float:
    """Lloyd's iteration number by number: the squared error it ends with."""
    for _ in range(steps):
        groups: list[list[float]] = [[] for _ in levels]
        for value in values:
            groups[min(range(len(levels)), key=lambda index: abs(value - levels[index]))].append(value)
        levels = [sum(group) / len(group) if group else level for group, level in zip(groups, levels, strict=True)]
    return sum(min((value - level) ** 2 for level in levels) for value in values)


def test_a_codebook_is_a_fixed_point_of_lloyds_iteration() -> None:
    weight = weights(4, 32)
    found = lookup.codebook(weight, 2, steps=200)
    expected = kmeans_oracle(weight.flatten().tolist(), found.levels[0].tolist(), 1)
    assert error(found, weight) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_codebook_beats_even_levels(bits: int) -> None:
    weight = weights()
    even = quantize(weight, bits, whole=True).values() - weight
    found = lookup.codebook(weight, bits)
    assert error(found, weight) < float(even.square().sum())
    assert error(lookup.codebook(weight, bits, 4), weight) <= error(found, weight) * 1.01
    assert error(found, weight) <= error(lookup.codebook(weight, bits, steps=0), weight)


def test_few_values_are_exact() -> None:
    weight = torch.tensor([[0.5, -1.0, 3.0, 0.5], [3.0, 3.0, -1.0, 0.5]])
    assert torch.equal(lookup.codebook(weight, 2).values(), weight)


def test_product_codes() -> None:
    table = weights(400, 24)
    codes, books = lookup.product_codes(table, 6, 5, torch.Generator().manual_seed(0))
    assert codes.shape == (400, 6)
    assert books.shape == (6, 32, 4)

    def lost(codes: Tensor, books: Tensor) -> float:
        back = torch.cat([books[part][codes[:, part].long()] for part in range(books.shape[0])], 1)
        return float((back - table).square().sum())

    for part in range(6):
        distances = torch.cdist(table[:, 4 * part : 4 * part + 4].double(), books[part].double())
        chosen = distances.gather(1, codes[:, part].long()[:, None]).squeeze(1)
        torch.testing.assert_close(chosen, distances.amin(1), rtol=1e-3, atol=1e-5)
    start = lookup.product_codes(table, 6, 5, torch.Generator().manual_seed(0), steps=0)
    assert lost(codes, books) < 0.95 * lost(*start)
    finer = lookup.product_codes(table, 12, 5, torch.Generator().manual_seed(0))
    assert lost(*finer) < lost(codes, books)


def test_product_codes_of_few_rows_are_exact() -> None:
    table = weights(20, 24)
    codes, books = lookup.product_codes(table, 1, 8, torch.Generator())
    assert torch.equal(books[0][codes[:, 0].long()], table)
