"""Low-rank factorisation of a matrix, plain or weighted by the inputs that it sees, and the choice of ranks.

Shapes: O outputs, I inputs, R rank, N tokens, K = min(O, I).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def break_even(out_features: int, in_features: int) -> int:
    """The largest R at which R (O + I) factors are fewer numbers than the O I of the matrix itself; may be 0."""
    return (out_features * in_features - 1) // (out_features + in_features)


def rank_of_share(share: float, out_features: int, in_features: int) -> int:
    """The largest R whose factors hold at most ``share`` of the matrix's numbers."""
    # The slack keeps 0.3 of 10 numbers at 3, which binary fractions would make 2.
    return int(share * out_features * in_features * (1 + 1e-12)) // (out_features + in_features)


def rank_of_energy(singular_values: Tensor, share: float) -> int:
    """The smallest R with Σ_{i ≤ R} σ_i² ≥ ``share`` Σ σ_i², from descending σ (K,)."""
    energy = singular_values.double().square()
    kept = energy.cumsum(0)
    return int(torch.searchsorted(kept, share * kept[-1] * (1 - 1e-12)).item()) + 1 if kept[-1] > 0 else 1


def rounded(rank: int, multiple: int) -> int:
    """``rank`` rounded down to a multiple, but at least that multiple."""
    return max(multiple, rank // multiple * multiple)


def square_root(second_moment: Tensor) -> Tensor:
    """S (I, I) with S Sᵀ = M, for a symmetric M (I, I) that may be singular: by Cholesky, else by eigenvectors.

    Any S serves: they differ by a rotation on the right. Eigenvalues below zero by rounding count as zero.
    """
    moment = second_moment.double()
    lower, failed = torch.linalg.cholesky_ex(moment)
    if int(failed) == 0:
        return lower
    values, vectors = torch.linalg.eigh(moment)
    return vectors * values.clamp(min=0).sqrt()


def sensitivity_root(gradient_moment: Tensor) -> Tensor:
    """L (O, O), upper triangular, with Lᵀ L = Γ / mean(diag Γ) + 1, for Γ = E[g gᵀ] of gradients at the outputs.

    The unit matrix is the damping: half of the weight is laid on all outputs alike, since gradients of a few hundred
    texts know too little to neglect an output.
    """
    moment = gradient_moment.double()
    unit = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    lower: Tensor = torch.linalg.cholesky(moment / moment.diagonal().mean().clamp(min=1e-300) + unit)
    return lower.T


@dataclass(frozen=True)
class Spectrum:
    """What decides about a matrix's rank: the singular value decomposition U Σ Vᵀ of L W S, K = min(O, I) terms.

    Args:
        basis: L⁻¹ U (O, K).
        dual: Uᵀ L (K, O); ``dual @ basis`` is the unit matrix.
        singular_values: descending (K,).
    """

    basis: Tensor
    dual: Tensor
    singular_values: Tensor

    def loss(self, rank: int) -> float:
        """√Σ_{i > R} σ_i²: exactly ‖L (W - W') S‖ of the best W' of rank R."""
        return float(self.singular_values[rank:].double().square().sum().sqrt())


def spectrum(weight: Tensor, root: Tensor | None = None, left: Tensor | None = None) -> Spectrum:
    """The spectrum of L W S, float64, for W (O, I).

    With ``root`` S (I, I), S Sᵀ = E[x xᵀ], ‖(W - W') S‖² is the mean squared error of the outputs: DRONE (Chen et al.
    2021); SVD-LLM (Wang et al., ICLR 2025, arXiv 2403.07378), theorem 3.2. With ``left``, an upper triangular L (O, O),
    errors count by how much the model's result depends on them: Chekalina et al. 2025 (arXiv 2505.17974).
    """
    matrix = weight.double() if root is None else weight.double() @ root
    if left is not None:
        matrix = left @ matrix
    vectors, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    if left is None:
        return Spectrum(vectors, vectors.T, values)
    return Spectrum(torch.linalg.solve_triangular(left, vectors, upper=True), vectors.T @ left, values)


def factors(weight: Tensor, found: Spectrum, rank: int) -> tuple[Tensor, Tensor]:
    """U (O, R) and D (R, I), float64, such that U D is the best approximation of rank R that ``found`` speaks of.

    The published solution U_r Σ_r V_rᵀ S⁻¹ equals U_r U_rᵀ W wherever S can be inverted. In this form nothing of the
    inputs is inverted, a singular S does no harm, and inputs that no calibration text excites are still approximated.
    Each singular value is split evenly, so that the two factors are of one magnitude.
    """
    strength = found.singular_values[:rank].sqrt()
    strength = torch.where(strength > 1e-8 * found.singular_values[:1].sqrt(), strength, torch.ones_like(strength))
    return found.basis[:, :rank] * strength, (found.dual[:rank] / strength[:, None]) @ weight.double()


def weighted_error(weight: Tensor, other: Tensor, second_moment: Tensor) -> float:
    """√tr((W - W') M (W - W')ᵀ), the oracle of ``Spectrum.loss``: the root of the outputs' summed squared error."""
    difference = weight.double() - other.double()
    return float((difference @ second_moment.double() * difference).sum().clamp(min=0).sqrt())


@dataclass(frozen=True)
class Candidate:
    """A matrix among which a budget is shared: its size and the squared errors that its ranks take away.

    Args:
        out_features, in_features: O, I.
        gains: what rank i + 1 takes off the loss, σ_i² in the unit of comparison, descending (K,).
    """

    out_features: int
    in_features: int
    gains: Tensor


def allocate(candidates: Sequence[Candidate], budget: int, step: int = 1) -> list[int | None]:
    """Ranks that share ``budget`` numbers among matrices: always the next step that takes off most loss per number.

    Every matrix gets at least ``step``. One for which factors stop being smaller than the matrix becomes dense (None),
    if the rest of its loss is worth the numbers that it then takes.

    Args:
        budget: numbers that all factors and dense matrices may hold together.
        step: ranks are multiples of it.

    Returns:
        a rank for each matrix, or None for dense. The budget is exceeded only if ``step`` for all exceeds it.
    """
    ranks: list[int | None] = []
    queue: list[tuple[float, int, int | None, int]] = []
    spent = 0
    for index, item in enumerate(candidates):
        limit = break_even(item.out_features, item.in_features)
        if limit < step:
            ranks.append(None)
            spent += item.out_features * item.in_features
            continue
        ranks.append(step)
        spent += step * (item.out_features + item.in_features)
        _offer(queue, index, item, step, step)
    while queue:
        _, index, target, cost = heapq.heappop(queue)
        if spent + cost > budget:
            continue
        ranks[index], spent = target, spent + cost
        if target is not None:
            _offer(queue, index, candidates[index], target, step)
    return ranks


def _offer(queue: list[tuple[float, int, int | None, int]], index: int, item: Candidate, rank: int, step: int) -> None:
    """Queue the next growth of one matrix from ``rank``: by one step, or to dense."""
    out_features, in_features = item.out_features, item.in_features
    target: int | None = rank + step
    if rank + step > break_even(out_features, in_features):
        target, cost, gain = None, out_features * in_features - rank * (out_features + in_features), item.gains[rank:]
    else:
        cost, gain = step * (out_features + in_features), item.gains[rank : rank + step]
    heapq.heappush(queue, (-float(gain.sum()) / cost, index, target, cost))
