"""``decomposition.svd``: two thin matrices in place of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskit.calibrate.gradients import output_gradients
from compresskit.calibrate.moments import Moments, input_moments
from compresskit.core import surgery
from compresskit.core.compressor import Compressor, Gain, Need
from compresskit.core.context import Context
from compresskit.core.sites import Site
from compresskit.core.surgery import tied_elsewhere
from compresskit.core.weights import WeightView, view
from compresskit.nn.low_rank import LowRankLinear
from compresskit.numerics import low_rank
from compresskit.registry import register

DEFAULT_RATIO = 0.75
_MEMORY = 2**31
"""Bytes of second moments that are gathered in one pass."""


@register
class Svd(Compressor):
    """Two thin matrices in place of one, by a singular value decomposition weighted by the inputs that it sees.

    A matrix whose factors would not be smaller is left dense, and the report says so. Give one of ``rank``, ``ratio``,
    ``energy``, ``budget``; without any, ``ratio`` is .75.
    """

    family: ClassVar[str] = "decomposition"
    name: ClassVar[str] = "svd"
    sites: ClassVar[frozenset[str]] = frozenset({"matrix"})
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    shrinks: ClassVar[frozenset[Gain]] = frozenset({"file", "memory", "compute", "latency"})
    leaves: ClassVar[tuple[str, ...] | None] = ("down", "up")
    paper: ClassVar[str] = (
        "Wang et al., SVD-LLM, 2024 (arXiv 2403.07378); Chen et al., DRONE, NeurIPS 2021; sensitivity: Chekalina et"
        " al., 2025 (arXiv 2505.17974)"
    )

    rank: int | None = Field(None, ge=1, description="rank of every matrix")
    ratio: float | None = Field(None, gt=0, le=1, description="share of each matrix's parameters to keep (default .75)")
    energy: float | None = Field(None, gt=0, le=1, description="share of the squared singular values to keep")
    budget: float | None = Field(
        None, gt=0, le=1, description="share of all targets' parameters, spent where it saves most"
    )
    whiten: bool = Field(True, description="weigh by the second moments of calibration inputs; false: plain SVD")
    sensitivity: bool = Field(
        True, description="with whiten: weigh outputs too, by how much the model's result depends on them"
    )
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
        """Exact for a rank or a ratio; for a budget at most, short of one rank; unknown for an energy."""
        if self.energy is not None:
            return None
        saved = 0.0
        for site in sites:
            weight = view(model, site.path).weight
            rows, columns = weight.shape
            if self.budget is not None:
                saved += (1 - self.budget) * weight.numel() * weight.element_size()
                continue
            if not self._surely_dense(rows, columns):
                rank = low_rank.rounded(self._fixed_rank(rows, columns), self.round_to)
                saved += (rows * columns - rank * (rows + columns)) * weight.element_size()
        return int(saved)

    def refuse_site(self, model: PreTrainedModel, site: Site) -> str | None:
        weight = view(model, site.path).parameter
        tied = [
            path
            for path in tied_elsewhere(model, site.path)
            if any(other is weight for other in model.get_submodule(path).parameters(recurse=False))
        ]
        return f"its weight is tied to {', '.join(tied)}, which would keep a copy" if tied else None

    def _fixed_rank(self, rows: int, columns: int) -> int:
        if self.rank is not None:
            return self.rank
        return low_rank.rank_of_share(self.ratio if self.ratio is not None else DEFAULT_RATIO, rows, columns)

    def apply(self, model: PreTrainedModel, sites: Sequence[Site], context: Context) -> None:
        if self.nothing_asked():
            return
        paths = [site.path for site in sites]
        # Nothing is replaced before all statistics are gathered: they are those of the model as it came.
        layers: dict[str, LowRankLinear] = {}
        why = "its factors would not be smaller" if self.budget is None else "the budget is well spent on it"
        context.details.update({path: {"left_dense": why} for path in paths})
        promising = [path for path in paths if not self._surely_dense(*view(model, path).weight.shape)]
        for path, spectrum, rank in self._ranked(model, promising, context):
            if rank is not None:
                layers[path], context.details[path] = _factorised(view(model, path), spectrum, rank)
        for path, layer in layers.items():
            surgery.replace(model, path, layer)
        dense = len(paths) - len(layers)
        if not layers:
            context.nothing("at these ranks the two factors of every matrix would not be smaller than it: all stay")
        if dense and self.budget is None:
            context.warn(f"{dense} of {len(paths)} matrices stay dense: their factors would not be smaller")

    def _ranked(
        self, model: PreTrainedModel, paths: list[str], context: Context
    ) -> Iterator[tuple[str, low_rank.Spectrum, int | None]]:
        """Each matrix with its spectrum and its rank, None where it is better left dense."""
        if self.budget is None:
            for path, spectrum, _ in self._spectra(model, paths, context):
                rows, columns = view(model, path).weight.shape
                rank = low_rank.rounded(self._own_rank(spectrum, rows, columns), self.round_to)
                yield path, spectrum, rank if rank <= low_rank.break_even(rows, columns) else None
            return
        found = list(self._spectra(model, paths, context))
        known = all(unit is not None for _, _, unit in found)
        candidates = []
        for path, spectrum, unit in found:
            rows, columns = view(model, path).weight.shape
            # Without gradients, losses of matrices of different scale are compared relative to their own output.
            worth = unit if known and unit is not None else 1 / max(spectrum.loss(0) ** 2, 1e-300)
            candidates.append(low_rank.Candidate(rows, columns, worth * spectrum.singular_values.square().cpu()))
        total = sum(item.out_features * item.in_features for item in candidates)
        ranks = low_rank.allocate(candidates, int(self.budget * total), self.round_to)
        least = sum(self.round_to * (item.out_features + item.in_features) for item in candidates)
        if least > self.budget * total and total:
            context.warn(f"rank {self.round_to} everywhere already holds {least / total:.0%}, more than the budget")
        for (path, spectrum, _), shared in zip(found, ranks, strict=True):
            yield path, spectrum, shared

    def _surely_dense(self, rows: int, columns: int) -> bool:
        """Whether the options alone tell that factors would not be smaller; no statistics are gathered then."""
        if self.energy is not None or self.budget is not None:
            return False
        return low_rank.rounded(self._fixed_rank(rows, columns), self.round_to) > low_rank.break_even(rows, columns)

    def _own_rank(self, spectrum: low_rank.Spectrum, rows: int, columns: int) -> int:
        if self.energy is not None:
            return low_rank.rank_of_energy(spectrum.singular_values, self.energy)
        return self._fixed_rank(rows, columns)

    def _spectra(
        self, model: PreTrainedModel, paths: list[str], context: Context
    ) -> Iterator[tuple[str, low_rank.Spectrum, float | None]]:
        """Each matrix with its spectrum, and what a squared singular value of it is worth to the result, if known."""
        done = 0
        unreached: list[str] = []
        unrouted: list[str] = []
        for portion in _portions(model, paths):
            moments, gradients = self._statistics(model, portion, context)
            roots: dict[int, Tensor] = {}
            for path in portion:
                # Queries, keys and values see the same inputs, and get the same moments: one root serves all.
                seen = moments.get(path)
                if seen is None and self.whiten:
                    unrouted.append(path)
                weight = view(model, path).weight
                if seen is not None and id(seen) not in roots:
                    moment = cast(Tensor, seen.gram).to(weight.device) / seen.count
                    roots[id(seen)] = low_rank.square_root(moment)
                felt = gradients.get(path)
                if felt is None and seen is not None and self.sensitivity:
                    unreached.append(path)
                left = low_rank.sensitivity_root(felt.to(weight.device)) if felt is not None else None
                spectrum = low_rank.spectrum(weight, roots.get(id(seen)), left)
                done += 1
                context.progress(done / len(paths), f"decomposing {path}")
                yield path, spectrum, None if felt is None else float(felt.diagonal().mean())
        if unrouted:
            context.warn(
                f"no token of the calibration is routed to the expert of {unrouted[0]}"
                + (f" and {len(unrouted) - 1} more" if len(unrouted) > 1 else "")
                + ": decomposed by their values alone"
            )
        if unreached:
            context.warn(
                f"no gradient comes back to {unreached[0]}"
                + (f" and {len(unreached) - 1} more" if len(unreached) > 1 else "")
                + ": weighed by their inputs alone"
            )

    def _statistics(
        self, model: PreTrainedModel, paths: list[str], context: Context
    ) -> tuple[dict[str, Moments], dict[str, Tensor]]:
        """Moments of the inputs and of the gradients at the outputs, as far as the options want them."""
        if not self.whiten:
            return {}, {}
        surgery.open_parts(model, paths)
        moments = input_moments(model, paths, context.calibration, unrouted=True)
        moments = {path: found for path, found in moments.items() if found.count}
        if not self.sensitivity:
            return moments, {}
        return moments, output_gradients(model, paths, context.calibration, seed=context.seed)


def _portions(model: PreTrainedModel, paths: list[str]) -> list[list[str]]:
    """Consecutive paths whose second moments fit into memory together; each portion costs a pass over the data."""
    portions: list[list[str]] = []
    room = 0
    for path in paths:
        rows, columns = view(model, path).weight.shape
        size = 8 * (rows**2 + columns**2)
        if not portions or size > room:
            portions.append([])
            room = _MEMORY
        portions[-1].append(path)
        room -= size
    return portions


def _factorised(plain: WeightView, spectrum: low_rank.Spectrum, rank: int) -> tuple[LowRankLinear, dict[str, Any]]:
    """The two factors that will stand for a matrix, and its row of the ledger."""
    weight = plain.weight
    rows, columns = weight.shape
    up, down = (part.to(weight.dtype) for part in low_rank.factors(weight, spectrum, rank))
    layer = LowRankLinear.from_factors(up, down, plain.bias)
    if plain.bias_parameter is not None:
        # The very parameter: the bias of BERT's head is that of `predictions` too.
        cast(nn.Linear, layer.up).bias = plain.bias_parameter
    whole = spectrum.loss(0)
    difference = torch.linalg.vector_norm(up.double() @ down.double() - weight.double())
    detail = {
        "rank": rank,
        "of": min(rows, columns),
        "parameters": [rows * columns, rank * (rows + columns)],
        "relative_loss": spectrum.loss(rank) / whole if whole > 0 else 0.0,
        "relative_error": float(difference / torch.linalg.vector_norm(weight.double()).clamp(min=1e-300)),
    }
    return layer, detail
