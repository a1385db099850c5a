from __future__ import annotations

import pytest
import torch

from compresskit.numerics.rotation import hadamard, random_hadamard, rotate_inputs, rotate_outputs


@pytest.mark.parametrize("size", [1, 2, 3, 12, 64, 96, 105])
def test_orthogonal_and_flat(size: int) -> None:
    found = hadamard(size)
    torch.testing.assert_close(found @ found.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(found.abs().max()) <= (2 / size) ** 0.5 + 1e-12
    if size & (size - 1) == 0:
        torch.testing.assert_close(found.abs(), torch.full_like(found, size**-0.5))


def test_random_signs_keep_it_orthogonal_and_follow_the_seed() -> None:
    first, again, other = (random_hadamard(24, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.testing.assert_close(first.T @ first, torch.eye(24, dtype=torch.float64), rtol=0, atol=1e-12)


def test_nothing_to_rotate_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 channels"):
        hadamard(0)


def test_products_are_those_of_the_formulas() -> None:
    weight, gain, bias = torch.randn(10, 12), torch.rand(12), torch.randn(12)
    rotation = random_hadamard(12, torch.Generator().manual_seed(0))
    expected = weight.double() @ torch.diag(gain.double()) @ rotation
    torch.testing.assert_close(rotate_inputs(weight, rotation, gain).double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        rotate_outputs(bias, rotation).double(), rotation.T @ bias.double(), rtol=1e-6, atol=1e-6
    )
    small = random_hadamard(4, torch.Generator().manual_seed(0))
    parts = torch.block_diag(small, small, small)
    torch.testing.assert_close(rotate_inputs(weight, small).double(), weight.double() @ parts, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        rotate_outputs(weight.T, small).double(), parts.T @ weight.T.double(), rtol=1e-6, atol=1e-6
    )
