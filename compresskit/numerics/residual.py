"""Low-rank correction of a quantized matrix: W ≈ Q(W) + B A, fitted to what rounding lost.

LQER (Zhang et al., ICML 2024, arXiv 2402.02446), EoRA (Liu et al. 2024, arXiv 2410.21271), QERA (Zhang et al., ICLR
2025, arXiv 2410.06040). Shapes: W (O, I), B (O, R), A (R, I), second moments of the inputs M = E[x xᵀ] (I, I).
"""

from __future__ import annotations

import torch
from torch import Tensor

from compresskit.numerics.low_rank import factors, spectrum


def correction(weight: Tensor, quantized: Tensor, rank: int, root: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """B and A, float64, of the best correction of rank ``rank`` of ``quantized``.

    Args:
        root: S (I, I) with S Sᵀ = M; what is least then is ‖(W - Q(W) - B A) S‖, the error of the outputs. None: the
            error of the weights themselves.
    """
    error = weight.double() - quantized.double()
    return factors(error, spectrum(error, root), rank)


def correction_oracle(weight: Tensor, quantized: Tensor, rank: int, moment: Tensor) -> Tensor:
    """B A (O, I), float64, as published (QERA, theorem 1): SVD_R(E M^½) M^-½ with the symmetric root of a regular M."""
    values, vectors = torch.linalg.eigh(moment.double())
    root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
    left, strength, right = torch.linalg.svd((weight.double() - quantized.double()) @ root, full_matrices=False)
    return (left[:, :rank] * strength[:rank]) @ right[:rank] @ inverse
