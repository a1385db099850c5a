from __future__ import annotations

import torch
from torch import Tensor

from compresskit.numerics.low_rank import square_root, weighted_error
from compresskit.numerics.residual import correction, correction_oracle
from compresskit.numerics.rtn import quantize


def parts(rows: int = 24, columns: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix, it in 3 bits, and second moments of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -2, columns)
    inputs = torch.randn(400, columns, generator=generator) @ mixing.T
    return weight, quantize(weight, 3, 16).values(), inputs.T @ inputs / 400


def test_equals_the_published_form() -> None:
    weight, quantized, moment = parts()
    up, down = correction(weight, quantized, 5, square_root(moment))
    assert (up.shape, down.shape) == ((24, 5), (5, 32))
    torch.testing.assert_close(up @ down, correction_oracle(weight, quantized, 5, moment), rtol=1e-6, atol=1e-8)


def test_full_rank_recovers_the_matrix_and_errors_fall_with_rank() -> None:
    weight, quantized, moment = parts()
    for root in (None, square_root(moment)):
        measure = torch.eye(32) if root is None else moment
        errors = []
        for rank in (1, 2, 4, 8, 16, 24):
            up, down = correction(weight, quantized, rank, root)
            errors.append(weighted_error(weight, quantized + up @ down, measure))
        assert errors == sorted(errors, reverse=True)
        assert errors[0] < weighted_error(weight, quantized, measure)
        torch.testing.assert_close(quantized + up @ down, weight.double(), rtol=0, atol=1e-6)


def test_moments_make_the_outputs_better_and_the_weights_worse() -> None:
    weight, quantized, moment = parts()
    plain, whitened = (
        quantized + up @ down
        for up, down in (correction(weight, quantized, 4), correction(weight, quantized, 4, square_root(moment)))
    )
    assert weighted_error(weight, whitened, moment) < 0.7 * weighted_error(weight, plain, moment)
    assert weighted_error(weight, whitened, torch.eye(32)) > weighted_error(weight, plain, torch.eye(32))


def test_inputs_that_were_never_seen_do_no_harm() -> None:
    weight, quantized, moment = parts()
    moment[:, 5:9] = moment[5:9] = 0
    up, down = correction(weight, quantized, 24, square_root(moment))
    assert bool(torch.isfinite(up @ down).all())
    assert weighted_error(weight, quantized + up @ down, moment) < 1e-6 * weighted_error(weight, quantized, moment)
