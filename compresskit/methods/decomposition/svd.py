"""``decomposition.svd``: two thin matrices in place of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.calibrate.moments import Moments, input_moments
from compresskit.core import surgery
from compresskit.core.compressor import Compressor, Gain, Need
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.surgery import tied_elsewhere
from compresskit.core.weights import view
from compresskit.nn.low_rank import LowRankLinear
from compresskit.numerics import low_rank
from compresskit.registry import register

DEFAULT_RATIO = 0.75


@register
class Svd(Compressor):
    """Two thin matrices in place of one, by a singular value decomposition weighted by the inputs that it sees.

    A matrix whose factors would not be smaller is left dense, and the report says so.
    """

    family: ClassVar[str] = "decomposition"
    name: ClassVar[str] = "svd"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory", "compute", "latency"})
    leaves: ClassVar[tuple[str, ...] | None] = ("down", "up")
    paper: ClassVar[str] = "Wang et al., SVD-LLM, 2024 (arXiv 2403.07378); Chen et al., DRONE, NeurIPS 2021"

    rank: int | None = Field(None, ge=1, description="rank of every matrix")
    ratio: float | None = Field(None, gt=0, le=1, description="share of each matrix's parameters to keep (default .75)")
    energy: float | None = Field(None, gt=0, le=1, description="share of the squared singular values to keep")
    budget: float | None = Field(
        None, gt=0, le=1, description="share of all targets' parameters, spent where it saves most"
    )
    whiten: bool = Field(True, description="weigh by the second moments of calibration inputs; false: plain SVD")
    round_to: int = Field(1, ge=1, description="round ranks down to a multiple of this")

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Svd:
        given = [name for name in ("rank", "ratio", "energy", "budget") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of rank, ratio, energy, budget, not {' and '.join(given)}")
        return self

    def requirements(self) -> frozenset[Need]:
        return self.needs if self.whiten else frozenset()

    def nothing_asked(self) -> str | None:
        """All of it kept: the factors would be larger than the matrices, which stay."""
        for name in ("ratio", "energy", "budget"):
            if getattr(self, name) == 1.0:
                return f"{name} 1.0 keeps every matrix dense"
        return None

    def predicted_saving(self, model: PreTrainedModel, sites: Sequence[Site]) -> int | None:
        """Known beforehand for a rank or a ratio."""
        if self.energy is not None or self.budget is not None:
            return None
        saved = 0
        for site in sites:
            plain = view(model, site.path)
            rows, columns = plain.weight.shape
            rank = low_rank.rounded(self._fixed_rank(rows, columns), self.round_to)
            if rank <= low_rank.break_even(rows, columns):
                saved += (rows * columns - rank * (rows + columns)) * plain.weight.element_size()
        return saved

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        tied = tied_elsewhere(model, site.path)
        return f"its weight is tied to {', '.join(tied)}, which would keep a copy" if tied else None

    def _fixed_rank(self, rows: int, columns: int) -> int:
        if self.rank is not None:
            return self.rank
        return low_rank.rank_of_share(self.ratio if self.ratio is not None else DEFAULT_RATIO, rows, columns)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.nothing_asked():
            context.details.update({site.path: {"left_dense": "nothing was asked"} for site in sites})
            return
        paths = [site.path for site in sites]
        roots: dict[int, Tensor] = {}
        moments: dict[str, Moments] = {}
        if self.whiten:
            moments = input_moments(model, paths, context.calibration, gram=True, progress=context.progress)
        spectra = []
        for number, path in enumerate(paths):
            # Queries, keys and values see the same inputs, and get the same moments: one root serves all.
            seen = moments.get(path)
            if seen is not None and seen.gram is not None and id(seen) not in roots:
                roots[id(seen)] = low_rank.square_root(seen.gram)
            spectra.append(low_rank.spectrum(view(model, path).weight, roots.get(id(seen))))
            context.progress((number + 1) / len(paths), f"decomposing {path}")
        dense = 0
        for path, spectrum, rank in zip(paths, spectra, self._ranks(model, paths, spectra), strict=True):
            dense += not self._factorise(model, path, spectrum, rank, context)
        if dense:
            context.warn(f"{dense} of {len(paths)} matrices stay dense: their factors would not be smaller")

    def _ranks(self, model: PreTrainedModel, paths: list[str], spectra: list[low_rank.Spectrum]) -> list[int | None]:
        """A rank for each matrix, or None where it is better left dense."""
        views = [view(model, path) for path in paths]
        if self.budget is not None:
            # Losses of matrices of different scale are compared relative to their own output.
            candidates = [
                low_rank.Candidate(plain.out_features, plain.in_features, _relative_gains(found.singular_values))
                for plain, found in zip(views, spectra, strict=True)
            ]
            total = sum(plain.out_features * plain.in_features for plain in views)
            return low_rank.allocate(candidates, int(self.budget * total), self.round_to)
        ranks: list[int | None] = []
        for plain, found in zip(views, spectra, strict=True):
            if self.energy is not None:
                rank = low_rank.rank_of_energy(found.singular_values, self.energy)
            else:
                rank = self._fixed_rank(plain.out_features, plain.in_features)
            rank = low_rank.rounded(rank, self.round_to)
            ranks.append(rank if rank <= low_rank.break_even(plain.out_features, plain.in_features) else None)
        return ranks

    def _factorise(
        self, model: PreTrainedModel, path: str, spectrum: low_rank.Spectrum, rank: int | None, context: Context
    ) -> bool:
        """Replace the matrix at ``path``; False if it is better left dense."""
        plain = view(model, path)
        rows, columns = plain.weight.shape
        if rank is None:
            context.details[path] = {"left_dense": f"its factors would hold more than the {rows}x{columns} matrix"}
            return False
        up, down = (part.to(plain.weight.dtype) for part in low_rank.factors(plain.weight, spectrum, rank))
        whole = spectrum.loss(0)
        context.details[path] = {
            "rank": rank,
            "of": min(rows, columns),
            "parameters": [rows * columns, rank * (rows + columns)],
            "relative_loss": spectrum.loss(rank) / whole if whole > 0 else 0.0,
        }
        surgery.replace(model, path, LowRankLinear.from_factors(up, down, plain.bias))
        return True


def _relative_gains(singular_values: Tensor) -> Tensor:
    """Share of Σ σ² that each further rank keeps, (K,)."""
    squares = singular_values.double().square()
    return squares / squares.sum().clamp(min=1e-300)
