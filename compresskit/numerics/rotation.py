"""Orthogonal matrices that spread outliers over all channels.

QuaRot (Ashkboos et al., NeurIPS 2024, arXiv 2404.00456): RMSNorm(x Q) = RMSNorm(x) Q for orthogonal Q, so a residual
stream can be rotated if the matrices that write to it and read from it are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_NUMBERS = 2**24
"""Of a matrix that are in float64 at a time."""


def hadamard(size: int) -> Tensor:
    """An orthogonal (size, size) matrix in float64 with entries of at most √2 / √size.

    Sylvester's Hadamard matrix of the largest power of two that divides ``size``, ⊗ Hartley's matrix of the odd rest,
    (cos + sin)(2π i j / m) / √m, where there is one.
    """
    if size < 1:
        raise ValueError(f"no rotation of {size} channels")
    power = size & -size
    index = torch.arange(size // power, dtype=torch.float64)
    angle = 2 * math.pi * index[:, None] * index / len(index)
    found = (angle.cos() + angle.sin()) / math.sqrt(len(index))
    step = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
    while len(found) < size:
        found = torch.kron(step, found)
    return found


def random_hadamard(size: int, generator: torch.Generator) -> Tensor:
    """diag(± 1) times ``hadamard``: channels with equal signs don't gather in one place."""
    signs = torch.randint(0, 2, (size, 1), generator=generator).double() * 2 - 1
    return signs * hadamard(size)


def rotate_inputs(weight: Tensor, rotation: Tensor, gain: Tensor | None = None) -> Tensor:
    """W diag(g) Q in the type of W (O, I), computed in float64, for inputs that became Qᵀ x and lost their gain g.

    Args:
        rotation: Q, (D, D); D divides I, and equal parts of the inputs are rotated alike.
        gain: (I,).
    """
    size = len(rotation)
    result = torch.empty_like(weight)
    for start in range(0, len(weight), max(1, _NUMBERS // weight.shape[1])):
        rows = slice(start, start + max(1, _NUMBERS // weight.shape[1]))
        part = weight[rows].double() if gain is None else weight[rows].double() * gain.double()
        result[rows] = (part.unflatten(1, (-1, size)) @ rotation.to(part.device)).flatten(1).to(weight.dtype)
    return result


def rotate_outputs(weight: Tensor, rotation: Tensor) -> Tensor:
    """Qᵀ W in the type of W, for outputs that shall be Qᵀ y. W is (O, I), or a bias (O,); D divides O."""
    if weight.dim() == 1:
        return rotate_inputs(weight[None], rotation)[0]
    return rotate_inputs(weight.T, rotation).T
